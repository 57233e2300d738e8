# SPDX-License-Identifier: Apache-2.0
"""Cases through the evaluator: read in a worker, side by side, one failing, under MONAI's metrics, interrupted."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.data import DataLoader, MetaTensor
from monai.data.utils import no_collation
from monai.engines.utils import IterationEvents
from monai.handlers import MeanAbsoluteError, from_engine
from monai.transforms import Identity, Lambdad, LoadImaged
from torch.utils.data import get_worker_info

from contourdiff.data import label_files
from contourdiff.data.nifti_names import case_of
from contourdiff.data.translation_cases import TranslationCases
from contourdiff.inference.evaluator import CaseDataset, CaseEvaluator, CaseLoader, UnreadCase
from contourdiff.inference.inferer import VolumeInferer
from contourdiff.transforms import InPlaneResampled
from helpers.inferers import make_inferer, random_contours, translate_contours
from helpers.networks import TINY_NETWORK, make_seeded
from helpers.runs import QUICK_SETTINGS, run_tiny_inference
from helpers.volumes import CASE_NAMES, OBLIQUE, ball_ct, make_dataset, write_nifti

TRANSLATE = VolumeInferer.translate
RESAMPLE = InPlaneResampled.__call__
ENDS = ("label.nii.gz", "mr.json", "mr.nii.gz", "mr.png")


def watch(monkeypatch: pytest.MonkeyPatch, before: Callable[[list[str]], None]) -> None:
    """Call ``before`` with the names of the cases whenever the inferer translates some."""

    def watched(
        self: VolumeInferer, inputs: Sequence[MetaTensor], *args: Any, **options: Any
    ) -> Any:
        before([case_of(volume.meta["filename_or_obj"]) for volume in inputs])
        return TRANSLATE(self, inputs, *args, **options)

    monkeypatch.setattr(VolumeInferer, "translate", watched)


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file; of records, the slices and the flicker."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}
    records = {path.name: json.loads(path.read_text()) for path in folder.glob("*_mr.json")}
    return files | {
        name: json.dumps([record["slices"], record["flicker"]]).encode()
        for name, record in records.items()
    }


def make_sizes(folder: Path) -> Path:
    """Three cases of different sizes."""
    for number, name in enumerate(CASE_NAMES):
        write_nifti(
            folder / f"{name}.nii.gz",
            ball_ct((8 + number, 30 - number, 26 + number), seed=number),
            OBLIQUE,
        )
    return folder


class Volumes(torch.utils.data.Dataset):
    """Items as preprocessing returns them, with a target to compare with."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        name = self.names[index]
        if name == "unread":
            return UnreadCase(name, "OSError: gone")
        volume = random_contours(index)[None]
        return {
            "image": MetaTensor(volume, meta={"filename_or_obj": f"{name}.nii.gz"}),
            "name": name,
            "contrast": None,
            "target": torch.full_like(volume, 100.0),
        }


def evaluator(names: Sequence[str], **options: Any) -> CaseEvaluator:
    loader = DataLoader(Volumes(names), batch_size=1, collate_fn=no_collation)
    settings = {
        "device": torch.device("cpu"),
        "network": make_seeded(),
        "inferer": make_inferer(num_inference_steps=1),
    }
    return CaseEvaluator(val_data_loader=loader, **{**settings, **options})


@pytest.mark.slow
def test_cases_read_ahead_in_a_worker_give_the_same_files(
    tiny_weights: Path, tmp_path: Path
) -> None:
    dataset_dir = make_sizes(tmp_path / "ct")
    plain = contents(run_tiny_inference(dataset_dir, tmp_path / "plain", tiny_weights))
    assert len(plain) == 3 * len(CASE_NAMES)
    assert (
        contents(run_tiny_inference(dataset_dir, tmp_path / "worker", tiny_weights, num_workers=1))
        == plain
    )


SMALL_MEMORY = """
import json, sys
from contourdiff.bundle import run_inference_config

dataset_dir, output_dir, settings = json.loads(sys.argv[1])
run_inference_config(dataset_dir, output_dir, **settings)
"""


def quick_settings(weights: Path, **changes: Any) -> dict[str, Any]:
    settings = {
        "overlays": ["single"], "network_def": TINY_NETWORK, "ckpt_path": str(weights),
        "num_inference_steps": 2, "candidates": 1, "max_rounds": 1, "min_object_mm2": 100.0,
        "logging_file": False, "progress": False, **QUICK_SETTINGS,
    }  # fmt: skip
    return {**settings, **changes}


@pytest.mark.slow
@pytest.mark.parametrize("options", ["size=64k", "size=4k,nr_inodes=1"])
def test_cases_are_read_ahead_with_hardly_any_shared_memory(
    options: str, tiny_weights: Path, tmp_path: Path
) -> None:
    """The second one has no room for a single lock."""
    mount = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$@"'
    isolated = ["unshare", "-m", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*isolated, "true"]).returncode:
        pytest.skip("no right to mount a small /dev/shm")
    settings = quick_settings(tiny_weights, num_workers=1)
    arguments = json.dumps([str(make_sizes(tmp_path / "ct")), str(tmp_path / "mr"), settings])
    done = subprocess.run(
        [*isolated, sys.executable, "-c", SMALL_MEMORY, arguments], stderr=subprocess.PIPE, text=True, timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name[0] for path in (tmp_path / "mr").glob("*_mr.json")} == set(CASE_NAMES)


def test_no_volume_that_a_worker_reads_is_in_shared_memory(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise RuntimeError("unable to allocate shared memory(shm)")

    monkeypatch.setattr("torch.multiprocessing.reductions.reduce_storage", full)
    monkeypatch.setattr("torch.UntypedStorage._share_fd_cpu_", full)
    ct = make_sizes(tmp_path / "ct")
    cases = TranslationCases(ct, tmp_path / "mr")
    cases.check()
    load = LoadImaged("image", image_only=True, reader="contourdiff.data.nifti.SourceGridReader")
    dataset = CaseDataset(cases, load)
    for (item,), expected in zip(CaseLoader(dataset, num_workers=1), dataset, strict=True):
        assert torch.equal(item["image"], expected["image"])
        assert item["image"].meta["name"] == expected["name"]


def test_cases_after_the_death_of_a_reading_process_are_read_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def die(data: dict[str, Any]) -> dict[str, Any]:
        if data["case"] == "b" and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return data

    cases = TranslationCases(make_sizes(tmp_path / "ct"), tmp_path / "mr")
    cases.check()
    loader = CaseLoader(CaseDataset(cases, die), num_workers=1)
    assert [item["case"] for (item,) in loader] == list(CASE_NAMES)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("expected num_workers=1 processes that read ahead, got: RuntimeError")
    assert "killed by signal" in line
    assert line.endswith("pass num_workers=0")


@pytest.mark.slow
def test_every_case_is_translated_in_the_main_thread(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    watch(monkeypatch, lambda _: threads.append(threading.current_thread()))
    before = set(threading.enumerate())
    run_tiny_inference(
        make_dataset(tmp_path / "ct"), tmp_path / "mr", tiny_weights, progress=False
    )  # tqdm has a thread of its own
    assert threads == [threading.main_thread()] * len(CASE_NAMES)
    assert set(threading.enumerate()) <= before


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["read", "translate", "write"])
def test_a_case_that_fails_does_not_lose_the_others(
    stage: str, tiny_weights: Path, tmp_path: Path,
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
        wrapped = failing(RESAMPLE, lambda _, data: case_of(data["image"].meta["filename_or_obj"]))
        monkeypatch.setattr(InPlaneResampled, "__call__", wrapped)
    else:
        wrapped = failing(label_files.save_like, lambda data, source, path: Path(path).name[0])
        monkeypatch.setattr(label_files, "save_like", wrapped)
    caplog.set_level("INFO")
    with pytest.raises(ValueError, match="1 of 3 cases failed: b: RuntimeError: a fault in b"):
        run_tiny_inference(make_dataset(tmp_path / "ct"), tmp_path / "mr", tiny_weights)
    assert {path.name[0] for path in (tmp_path / "mr").glob("*_mr.json")} == {"a", "c"}
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("b: failed, ") and "a fault in b" in line for line in lines)
    assert any(line.startswith("2 translated, 0 kept, 1 failed") for line in lines)


def test_a_case_that_cannot_be_read_passes_a_process_boundary_as_text(tmp_path: Path) -> None:
    cases = TranslationCases(make_dataset(tmp_path, ("a",)), tmp_path / "mr")
    dataset = CaseDataset(cases, Lambdad("image", func=lambda _: 1 / 0))
    assert len(dataset) == 0  # before the cases are checked
    cases.check()
    assert len(dataset) == 1
    unread = dataset[0]
    assert pickle.loads(pickle.dumps(unread)) == UnreadCase(
        "a", "ZeroDivisionError: division by zero"
    )
    assert not isinstance(CaseDataset(cases, Identity())[0], UnreadCase)


def test_metrics_and_handlers_of_completed_iterations_see_the_cases() -> None:
    """A metric of MONAI and one of ignite give the mean over all completed cases; a failed case is not among them."""
    names = ["a", "b", "bad", "unread", "c"]
    seen: list[list[str]] = []
    gray_levels: dict[str, torch.Tensor] = {}

    def fail(engine: Engine) -> None:
        if "bad" in engine.state.batch[0]["image"].meta["filename_or_obj"]:
            raise RuntimeError("it is bad")
        gray_levels[case_of(engine.state.batch[0]["image"].meta["filename_or_obj"])] = (
            engine.state.output[0]["pred"]
        )

    engine = evaluator(
        names,
        postprocessing=Lambdad("pred", func=lambda pred: pred + 1),
        key_val_metric={"mae": MeanAbsoluteError(output_transform=from_engine(["pred", "target"]))},
        additional_metrics={
            "mean": Average(output_transform=lambda output: output[0]["pred"].mean().item())
        },
    )
    engine.add_event_handler(IterationEvents.MODEL_COMPLETED, fail)
    engine.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: seen.append([item["result"].case for item in engine.state.output]),
    )
    engine.run()
    assert list(engine.completed) == ["a", "b", "c"]
    assert engine.failures == {"bad": "RuntimeError: it is bad", "unread": "OSError: gone"}
    assert [name for batch in seen for name in batch] == ["a", "b", "c"]
    error = torch.stack([(pred - 100).abs().mean() for pred in gray_levels.values()]).mean()
    assert engine.state.metrics["mae"] == pytest.approx(float(error), rel=1e-5)
    firsts = [float(gray_levels[batch[0]].mean()) for batch in seen]
    assert engine.state.metrics["mean"] == pytest.approx(sum(firsts) / len(firsts), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_case_is_left_when_the_next_one_is_read(fails: bool) -> None:
    """Neither after its files are written nor after writing them has failed."""
    alive: list[weakref.ref] = []
    left: list[int] = []

    def write(engine: Engine) -> None:
        output = engine.state.output[0]
        alive.extend(weakref.ref(tensor) for tensor in (output["pred"], output["result"].contours))
        if fails:
            raise OSError("no space is left")

    def count(_: Engine) -> None:
        gc.collect()
        left.append(sum(reference() is not None for reference in alive))

    engine = evaluator(CASE_NAMES)
    engine.add_event_handler(IterationEvents.MODEL_COMPLETED, write)
    engine.add_event_handler(Events.GET_BATCH_STARTED, count)
    engine.run()
    assert left == [0] * len(CASE_NAMES)
    assert len(engine.failures) == (len(CASE_NAMES) if fails else 0)


@pytest.mark.slow
def test_a_stop_by_the_user_ends_the_run_and_leaves_whole_cases(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(names: list[str]) -> None:
        if names == ["c"]:
            raise KeyboardInterrupt

    watch(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        run_tiny_inference(make_dataset(tmp_path / "ct"), tmp_path / "mr", tiny_weights)
    assert {path.name for path in (tmp_path / "mr").iterdir()} == {
        f"{name}_{end}" for name in "ab" for end in ENDS
    }


CHILD = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
from contourdiff.bundle import run_inference_config

dataset_dir, output_dir, settings = json.loads(sys.argv[1])
run_inference_config(dataset_dir, output_dir, **settings)
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_one_interrupt_ends_the_run_at_once(
    num_workers: int, tiny_weights: Path, tmp_path: Path
) -> None:
    """SIGINT to the whole process group, as a terminal sends it, once the first case is written."""
    settings = {
        "overlays": ["single"], "network_def": TINY_NETWORK,
        "ckpt_path": str(tiny_weights), "num_inference_steps": 20, "candidates": 1,
        "max_rounds": 1, "min_object_mm2": 100.0, "logging_file": False, "num_workers": num_workers,
        **QUICK_SETTINGS,
    }  # fmt: skip
    del settings["acceleration"]  # the default engine, whose threads may get the signal, too
    names = tuple("abcdef")
    arguments = json.dumps(
        [str(make_dataset(tmp_path / "ct", names)), str(tmp_path / "mr"), settings]
    )
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, arguments], stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        for _ in range(1200):
            if (tmp_path / "mr" / "a_mr.json").is_file() or child.poll() is not None:
                break
            threading.Event().wait(0.1)
        os.killpg(child.pid, signal.SIGINT)
        _, error = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode != 0
    assert "KeyboardInterrupt" in error
    written = {path.name for path in (tmp_path / "mr").iterdir()}
    assert (
        {f"a_{end}" for end in ENDS}
        <= written
        <= {f"{name}_{end}" for name in names for end in ENDS}
    )
    assert "f_mr.json" not in written


def test_volumes_of_different_sizes_are_translated_as_a_sequence() -> None:
    given = [random_contours(0), random_contours(1, (5, 18, 25))]
    volumes = [
        MetaTensor(each[None], meta={"filename_or_obj": f"{name}.nii"})
        for name, each in zip("ab", given, strict=True)
    ]
    results = make_inferer()(volumes, make_seeded())
    assert isinstance(results, list)
    for result, volume, name in zip(results, given, "ab", strict=True):
        assert isinstance(result, MetaTensor)
        assert case_of(result.meta["filename_or_obj"]) == name
        assert torch.equal(torch.as_tensor(result[0]), translate_contours(volume, name))
    with pytest.raises(
        ValueError, match=r"each volume must be \(1, H, W, D\), got \(7, 21, 18\); add Ensure"
    ):
        make_inferer()(given, make_seeded())
