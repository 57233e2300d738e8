# SPDX-License-Identifier: Apache-2.0
"""Cases on their way through the evaluator: read and written beside the network's work, side by side, one failing."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from contourdiff.data.cases import case_of
from contourdiff.inference import allocator
from contourdiff.inference import evaluator as engines
from contourdiff.inference.inferer import ContourTranslationInferer
from contourdiff.transforms import InPlaneSmoothd
from helpers import (
    GUIDED_NETWORK,
    NAMES,
    OBLIQUE,
    ball_ct,
    contours,
    inferer,
    make_dataset,
    make_guided_network,
    make_seeded,
    run,
    translate,
    voxels,
    write_nifti,
)

Volumes = Sequence[MetaTensor]
TRANSLATE = ContourTranslationInferer.__call__


def watch(monkeypatch: pytest.MonkeyPatch, before: Callable[[list[str]], None]) -> None:
    """Call ``before`` with the names of the cases whenever the inferer is given some."""

    def watched(self: ContourTranslationInferer, inputs: Volumes, network: torch.nn.Module) -> Any:
        before([case_of(volume.meta["filename_or_obj"]) for volume in inputs])
        return TRANSLATE(self, inputs, network)

    monkeypatch.setattr(ContourTranslationInferer, "__call__", watched)


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file but the records, which tell of settings and times; of those, the slices."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}
    records = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return files | {
        name: json.dumps([record["slices"], record["flicker"]]).encode() for name, record in records.items()
    }


def make_sizes(folder: Path) -> Path:
    """Three cases of different sizes."""
    for number, name in enumerate(NAMES):
        write_nifti(folder / f"{name}.nii.gz", ball_ct((8 + number, 30 - number, 26 + number), seed=number), OBLIQUE)
    return folder


@pytest.mark.parametrize("cases_at_once", [1, 2])
@pytest.mark.parametrize("overlap_io", [False, True])
def test_outputs_are_the_same_to_the_bit(
    cases_at_once: int, overlap_io: bool, tiny_weights: Path, tmp_path: Path
) -> None:
    dataset_dir = make_sizes(tmp_path / "ct")
    plain = run(dataset_dir, tmp_path / "plain", tiny_weights)
    other = run(
        dataset_dir, tmp_path / "other", tiny_weights, overlap_io=overlap_io, cases_at_once=cases_at_once,
        save_uncertainty_map=False,
    )  # fmt: skip
    assert len(contents(plain)) == 3 * len(NAMES)
    assert contents(other) == contents(plain)


def test_the_last_case_is_written_and_the_next_one_read_while_the_network_works(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second case is not begun to be translated before the first is on the disk, nor before the third is read."""
    read: list[str] = []
    threads: set[int] = set()
    smooth = InPlaneSmoothd.__call__

    def reading(self: InPlaneSmoothd, data: dict) -> dict:
        read.append(case_of(data["image"].meta["filename_or_obj"]))
        return smooth(self, data)

    def wait(names: list[str]) -> None:
        threads.add(threading.get_ident())
        until = time.monotonic() + 120
        while names == ["b"] and not ((tmp_path / "mr" / "a_mr.json").is_file() and "c" in read):
            assert time.monotonic() < until, "the network waits for files"
            time.sleep(0.01)

    monkeypatch.setattr(InPlaneSmoothd, "__call__", reading)
    watch(monkeypatch, wait)
    run(make_dataset(tmp_path / "ct"), tmp_path / "mr", tiny_weights, overlap_io=True)
    assert read == list(NAMES)
    assert threads == {threading.get_ident()}  # the network stays in the thread of the caller
    assert len(list((tmp_path / "mr").glob("*_mr.json"))) == len(NAMES)


@pytest.mark.parametrize("overlap_io", [False, True])
def test_memory_is_kept_while_the_network_works_and_no_longer(
    overlap_io: bool, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case that is completed beside the network's work does not end it."""
    stops: list[int] = []
    stop = engines.stop_keeping_freed_memory
    monkeypatch.setattr(engines, "stop_keeping_freed_memory", lambda: stops.append(threading.get_ident()) or stop())
    run(make_dataset(tmp_path / "ct"), tmp_path / "mr", tiny_weights, overlap_io=overlap_io, keep_freed_memory=True)
    assert stops == [threading.get_ident()] * len(NAMES)
    assert not allocator._kept


@pytest.mark.parametrize("cases_at_once", [1, 3])
@pytest.mark.parametrize("overlap_io", [False, True])
@pytest.mark.parametrize("stage", ["read", "translate", "write"])
def test_a_case_that_fails_on_its_way_does_not_lose_the_others(
    stage: str, overlap_io: bool, cases_at_once: int, tiny_weights: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def fail(names: list[str]) -> None:
        if "b" in names:
            raise RuntimeError("a fault in b")

    def failing(function: Callable, case: Callable[..., str]) -> Callable:
        def wrapped(*args: Any, **options: Any) -> Any:
            fail([case(*args)])
            return function(*args, **options)

        return wrapped

    if stage == "translate":
        watch(monkeypatch, fail)
    elif stage == "read":
        wrapped = failing(InPlaneSmoothd.__call__, lambda _, data: case_of(data["image"].meta["filename_or_obj"]))
        monkeypatch.setattr(InPlaneSmoothd, "__call__", wrapped)
    else:
        from contourdiff import report

        wrapped = failing(report.save_like, lambda data, source, path: Path(path).name[0])
        monkeypatch.setattr(report, "save_like", wrapped)
    caplog.set_level("INFO")
    with pytest.raises(SystemExit) as stop:
        run(
            make_dataset(tmp_path / "ct"), tmp_path / "mr", tiny_weights, overlap_io=overlap_io,
            cases_at_once=cases_at_once,
        )  # fmt: skip
    assert stop.value.code == 1
    assert {path.name[0] for path in (tmp_path / "mr").glob("*_mr.json")} == {"a", "c"}
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("b: failed, ") and "a fault in b" in line for line in lines)
    assert any(line.startswith("2 translated, 0 kept, 1 failed") for line in lines)


@pytest.mark.parametrize("overlap_io", [False, True])
def test_a_stop_by_the_user_ends_the_run_and_leaves_whole_cases(
    overlap_io: bool, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(names: list[str]) -> None:
        if names == ["c"]:
            raise KeyboardInterrupt

    watch(monkeypatch, stop)
    dataset_dir = make_dataset(tmp_path / "ct")
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(dataset_dir, tmp_path / "mr", tiny_weights, overlap_io=overlap_io)
    assert threading.active_count() == before
    ends = ("label.nii.gz", "mr.json", "mr.nii.gz", "mr.png")
    assert {path.name for path in (tmp_path / "mr").iterdir()} == {f"{name}_{end}" for name in "ab" for end in ends}


def test_a_stop_while_the_next_case_is_read_leaves_no_thread_behind(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth = InPlaneSmoothd.__call__

    def reading(self: InPlaneSmoothd, data: dict) -> dict:
        if case_of(data["image"].meta["filename_or_obj"]) == "c":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.5)
        return smooth(self, data)

    monkeypatch.setattr(InPlaneSmoothd, "__call__", reading)
    dataset_dir = make_dataset(tmp_path / "ct")
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(dataset_dir, tmp_path / "mr", tiny_weights, overlap_io=True)
    assert threading.active_count() == before
    written = {path.name for path in (tmp_path / "mr").iterdir()}
    assert written <= {f"{name}_{end}" for name in NAMES for end in ("label.nii.gz", "mr.json", "mr.nii.gz", "mr.png")}
    assert "a_mr.json" in written
    assert "c_mr.json" not in written


def test_neighbor_guided_cases_share_their_batches(tmp_path: Path) -> None:
    weights = tmp_path / "guided.pt"
    torch.save(make_guided_network().state_dict(), weights)
    dataset_dir = make_dataset(tmp_path / "ct")
    calls, volumes = {}, {}
    for cases_at_once in (1, 3):
        output_dir = run(
            dataset_dir, tmp_path / str(cases_at_once), weights, network_def=GUIDED_NETWORK, neighbor_guided=True,
            cases_at_once=cases_at_once,
        )  # fmt: skip
        records = [json.loads((output_dir / f"{name}_mr.json").read_text()) for name in NAMES]
        calls[cases_at_once] = [record["network_calls"] for record in records]
        volumes[cases_at_once] = [voxels(output_dir / f"{name}_mr.nii.gz") for name in NAMES]
    assert len(set(calls[3])) == 1  # told of all of them together
    starts = len(NAMES)
    assert calls[3][0] - starts <= (sum(calls[1]) - starts) / 2
    assert all((alone == beside).all() for alone, beside in zip(volumes[1], volumes[3], strict=True))


def test_a_sequence_of_volumes_of_different_sizes() -> None:
    given = [contours(0), contours(1, (5, 18, 25))]
    volumes = [
        MetaTensor(each[None], meta={"filename_or_obj": f"{name}.nii"}) for name, each in zip("ab", given, strict=True)
    ]
    made = inferer()(volumes, make_seeded())
    assert isinstance(made, list)
    for result, volume, name in zip(made, given, "ab", strict=True):
        assert isinstance(result, MetaTensor)
        assert case_of(result.meta["filename_or_obj"]) == name
        assert torch.equal(torch.as_tensor(result[0]), translate(volume, name))
    with pytest.raises(ValueError, match=r"each volume must be \(1, H, W, D\), got \(7, 21, 18\); add Ensure"):
        inferer()(given, make_seeded())
