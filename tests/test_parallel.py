# SPDX-License-Identifier: Apache-2.0
"""Many processes give what one gives, to the bit, whatever happens to them."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from contourdiff import bundle, parallel
from contourdiff.inference import progress
from contourdiff.inference.summary import read_run
from helpers.networks import TINY_NETWORK
from helpers.paths import DATA, REPOSITORY
from helpers.runs import QUICK_SETTINGS
from helpers.volumes import OBLIQUE, ball_ct, make_dataset, write_nifti

distributed = pytest.importorskip(
    "distributed", reason="Dask is not installed: pip install -e '.[scale]'"
)
psutil = pytest.importorskip("psutil", reason="psutil comes with Dask")


@pytest.fixture
def tiny(tiny_weights: Path) -> dict[str, Any]:
    options = {
        "num_inference_steps": 2,
        "candidates": 2,
        "max_rounds": 1,
        "min_object_mm2": 100.0,
        "batch_size": 4,
        **QUICK_SETTINGS,
    }
    del options["acceleration"]  # the default engine, whose threads are the workers', too
    return {
        "overlays": ("single",),
        "network_def": TINY_NETWORK,
        "ckpt_path": str(tiny_weights),
        **options,
    }


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of a scheduler that runs already, with a worker."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster.scheduler_address


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of all files; of ``run.json`` all but the times."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    rows = [row | {"seconds": row["seconds"] is None} for row in read_run(folder)["cases"]]
    return files | {"run.json": json.dumps(rows).replace(f"/{folder.name}/", "/").encode()}


def differing(folder: Path, other: Path) -> set[str]:
    """Files that are not the same in both."""
    first, second = contents(folder), contents(other)
    return {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}


def make_cohort(folder: Path, count: int) -> Path:
    """Blocks at random places of real CT, where they lie, and balls, a label each."""
    chance = np.random.default_rng(0)
    for number in range(count):
        ct, affine = ball_ct((5, 30, 26), seed=number), OBLIQUE
        if number % 2 and DATA.is_dir():
            image = nib.load(DATA / "ct" / ("torso_ct.nii.gz", "thorax_ct.nii.gz")[number // 2 % 2])
            corner = chance.integers(0, np.array(image.shape) - (3, 40, 36))
            image = image.slicer[
                tuple(slice(at, at + size) for at, size in zip(corner, (3, 40, 36), strict=True))
            ]
            ct, affine = np.asarray(image.dataobj).astype(np.int16), image.affine
        write_nifti(folder / f"case{number:02}.nii.gz", ct, affine)
        write_nifti(
            folder / "labels" / f"case{number:02}.nii.gz", (ct > 200).astype(np.uint8) * 28, affine
        )
    return folder


def start_command(
    tiny: dict[str, Any], dataset_dir: Path, output_dir: Path, log: Path, *options: str
) -> Any:
    """The command line in a process of its own, with one thread."""
    settings = [
        f"{name}={json.dumps(value)}"
        for name, value in tiny.items()
        if name not in ("overlays", "ckpt_path")
    ]
    command = [
        sys.executable,
        "-m",
        "contourdiff",
        "translate",
        str(dataset_dir),
        str(output_dir),
        "--full",
        *options,
    ]
    command += [
        "--overlays",
        *tiny["overlays"],
        "--weights",
        tiny["ckpt_path"],
        "--settings",
        *settings,
    ]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "plugin")}
    environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "20"
    with log.open("w") as file:
        return psutil.Popen(
            command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=file
        )


def living_workers(run: Any) -> list[Any]:
    """Worker processes of a run, among them those that start."""
    found = []
    for child in run.children():
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def kill_workers(
    run: Any, output_dir: Path, cases: int, kills: int
) -> tuple[int, dict[str, set[tuple[int, int]]]]:
    """Kill a living worker at random moments until the run ends: how many, and the files that each record was.

    A moment is up to half a second after a number of records, at most three in four of the cases.
    """
    chance, killed, files, due = random.Random(0), 0, defaultdict(set), 0.0
    moments = sorted(chance.sample(range(1, cases * 3 // 4), kills))
    ended = False
    while not ended:
        time.sleep(0.01)
        ended = run.poll() is not None
        for record in output_dir.glob("*_mr.json"):
            status = record.stat()
            files[record.name].add((status.st_ino, status.st_mtime_ns))
        if killed < kills and len(files) >= moments[killed]:
            due = due or time.monotonic() + chance.uniform(0, 0.5)
            if time.monotonic() >= due and (workers := living_workers(run)):
                chance.choice(workers).kill()
                killed, due = killed + 1, 0.0
    return killed, files


@pytest.mark.slow
def test_killed_workers_change_nothing(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Of two workers one is killed again and again: each case is done once, with the files of one process."""
    cases, kills = 8, 2  # a worker, and a kill, costs 8 s of imports
    dataset_dir, many = make_cohort(tmp_path / "ct", cases), tmp_path / "many"
    expected = bundle.run_inference_config(dataset_dir, tmp_path / "one", **tiny)
    run = start_command(tiny, dataset_dir, many, tmp_path / "log", "--workers", "2")
    killed, files = kill_workers(run, many, cases, kills)
    log = (tmp_path / "log").read_text()
    assert run.wait() == 0, log
    assert killed == kills
    assert [len(versions) for versions in files.values()] == [1] * cases
    reported = re.findall(r"^(case\d\d): (?:done|kept),", log, re.M)
    assert sorted(reported) == [f"case{number:02}" for number in range(cases)]
    assert differing(many, expected) <= {
        "run.json"
    }  # a case may count as kept, if its worker died before it reported


@pytest.mark.slow
def test_a_worker_that_dask_gave_up_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a tenth of a second to start again, and is closed then; with none left Dask would wait for ever."""
    monkeypatch.setattr(parallel, "LOST_WORKER_TIMEOUT", "100ms")
    with parallel._connected(1, None) as client:
        client.wait_for_workers(1, timeout=60)
        (worker,) = living_workers(psutil.Process())
        worker.kill()
        again: list[Any] = []
        while not again:
            again = [child for child in living_workers(psutil.Process()) if child.pid != worker.pid]
        psutil.wait_procs(again, timeout=60)
        assert client.submit(os.getpid, pure=False).result(timeout=60) not in (
            worker.pid,
            *(p.pid for p in again),
        )


@pytest.mark.slow
def test_two_runs_at_once_leave_the_files_of_one(tiny: dict[str, Any], tmp_path: Path) -> None:
    """One of them with a worker; a volume that is converted among them. No library prints lines of its own."""
    dataset_dir, both = make_cohort(tmp_path / "ct", 4), tmp_path / "both"
    sitk.WriteImage(sitk.ReadImage(dataset_dir / "case00.nii.gz"), dataset_dir / "case04.nrrd")
    expected = bundle.run_inference_config(dataset_dir, tmp_path / "one", **tiny)
    logs = [tmp_path / "log0", tmp_path / "log1"]
    runs = [
        start_command(tiny, dataset_dir, both, logs[0]),
        start_command(tiny, dataset_dir, both, logs[1], "--workers", "1"),
    ]
    codes = [run.wait() for run in runs]
    lines = [line for log in logs for line in log.read_text().splitlines()]
    assert codes == [0, 0], lines
    assert [
        line for line in lines if not re.match(r"translate: |case\d\d|\d translated", line)
    ] == []
    assert differing(both, expected) <= {
        "run.json"
    }  # a case may count as kept, if the other run was first


@pytest.mark.slow
def test_failures_tables_and_logs_are_those_of_one_process(
    tiny: dict[str, Any], scheduler: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "contourdiff")
    dataset_dir = make_dataset(tmp_path / "ct", ("a", "b"))
    (dataset_dir / "bad.nii.gz").write_bytes(b"no volume")
    errors, lines = {}, {}
    for name, options in {"one": {}, "many": {"scheduler": scheduler}}.items():
        caplog.clear()
        run = parallel.run_inference_config if options else bundle.run_inference_config
        with pytest.raises(
            ValueError, match="1 of 3 cases failed: bad: expected a readable"
        ) as error:
            run(
                dataset_dir,
                tmp_path / name,
                stats=str(tmp_path / f"{name}.csv"),
                **options,
                **tiny,
            )  # type: ignore[operator]
        errors[name] = str(error.value)
        records = [record for record in caplog.records if record.name.startswith("contourdiff")]
        lines[name] = sorted(record.getMessage().replace(f"/{name}", "") for record in records)
    assert errors["one"] == errors["many"]
    assert lines["one"] == lines["many"]
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    one, many = ((tmp_path / f"{name}.csv").read_text().splitlines() for name in ("one", "many"))
    assert [line.split(",")[:4] for line in one] == [line.split(",")[:4] for line in many]


@pytest.mark.slow
def test_one_line_counts_the_cases_of_both_contrasts(
    tiny: dict[str, Any],
    scheduler: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
    dataset_dir = make_dataset(tmp_path / "ct", ("a", "b"))
    both = {**tiny, "contrasts": ["t1", "t2"], "contrast": "t1,t2"}
    expected = bundle.run_inference_config(dataset_dir, tmp_path / "one", **both)
    capsys.readouterr()
    parallel.run_inference_config(dataset_dir, tmp_path / "many", scheduler=scheduler, **both)
    assert contents(tmp_path / "many") == contents(expected)
    assert re.findall(r"^translate: (\d) of (\d) cases, ", capsys.readouterr().err, re.M)[-1] == (
        "4",
        "4",
    )


@pytest.mark.parametrize(
    "options", [{}, {"workers": 0}, {"workers": 2, "scheduler": "tcp://127.0.0.1:8786"}]
)
def test_either_workers_or_a_scheduler_is_given(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"expected workers, 1 or more, or a scheduler, got .*; pass either"
    ):
        parallel.run_inference_config(tmp_path, tmp_path / "mr", **options)


@pytest.mark.parametrize(
    ("gpus", "name", "device"),
    [(2, 3, "cuda:1"), (4, 3, "cuda:3"), (1, 3, None), (0, 3, None), (2, "tcp://a:1", None)],
)
def test_workers_of_one_machine_share_its_gpus_in_turn(
    gpus: int, name: int | str, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr(distributed, "get_worker", lambda: SimpleNamespace(name=name))
    assert parallel.gpu_of_worker() == ({} if device is None else {"device": torch.device(device)})
