# SPDX-License-Identifier: Apache-2.0
"""Many processes give what one gives, to the bit, whatever happens to them."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from contourdiff import bundle, cohort
from contourdiff.inference import progress
from contourdiff.inference.summary import read_run
from helpers import TINY_NETWORK, make_dataset

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install -e '.[scale]'")
psutil = pytest.importorskip("psutil", reason="psutil comes with Dask")
NAMES = tuple(f"case{number:02}" for number in range(12))


@pytest.fixture
def tiny(tiny_weights: Path) -> dict[str, Any]:
    options = {"num_inference_steps": 2, "candidates": 2, "max_rounds": 1, "min_object_mm2": 100.0, "batch_size": 4}
    return {"overlays": ("single",), "network_def": TINY_NETWORK, "ckpt_path": str(tiny_weights), **options}


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of all files; of ``run.json`` all but the times."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    rows = [row | {"seconds": row["seconds"] is None} for row in read_run(folder)["cases"]]
    return files | {"run.json": json.dumps(rows).replace(f"/{folder.name}/", "/").encode()}


def kill_workers(output_dir: Path, moments: list[int], killed: list[int]) -> None:
    """Kill a random worker whenever as many records exist, a moment later."""
    chance, deadline = random.Random(0), time.monotonic() + 120
    for count in moments:
        while len(list(output_dir.glob("*_mr.json"))) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        children = psutil.Process().children()
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        if workers:
            victim = chance.choice(workers)
            killed.append(victim.pid)
            victim.kill()


def test_killed_workers_change_nothing(tiny: dict[str, Any], tmp_path: Path) -> None:
    dataset_dir = make_dataset(tmp_path / "ct", NAMES)
    expected = bundle.translate(dataset_dir, tmp_path / "one", **tiny)
    killed: list[int] = []
    killer = threading.Thread(target=kill_workers, args=(tmp_path / "many", [1, 4, 7], killed), daemon=True)
    killer.start()
    cohort.translate(dataset_dir, tmp_path / "many", workers=2, **tiny)
    killer.join()
    assert len(killed) == 3
    assert contents(tmp_path / "many") == contents(expected)


def test_failures_tables_and_logs_are_those_of_one_process(
    tiny: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also with a scheduler that runs already."""
    caplog.set_level("INFO", "contourdiff")
    dataset_dir = make_dataset(tmp_path / "ct", ("a", "b"))
    (dataset_dir / "bad.nii.gz").write_bytes(b"no volume")
    errors, lines = {}, {}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        for name, options in {"one": {}, "many": {"scheduler": cluster.scheduler_address}}.items():
            caplog.clear()
            run = cohort.translate if options else bundle.translate
            with pytest.raises(ValueError, match="1 of 3 cases failed: bad: expected a readable") as error:
                run(dataset_dir, tmp_path / name, stats=str(tmp_path / f"{name}.csv"), **options, **tiny)  # type: ignore[operator]
            errors[name] = str(error.value)
            records = [record for record in caplog.records if record.name.startswith("contourdiff")]
            lines[name] = sorted(record.getMessage().replace(f"/{name}", "") for record in records)
    assert errors["one"] == errors["many"]
    assert lines["one"] == lines["many"]
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    one, many = ((tmp_path / f"{name}.csv").read_text().splitlines() for name in ("one", "many"))
    assert [line.split(",")[:4] for line in one] == [line.split(",")[:4] for line in many]


def test_one_line_counts_the_cases_of_both_contrasts(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
    dataset_dir = make_dataset(tmp_path / "ct", ("a", "b"))
    both = {**tiny, "contrasts": ["t1", "t2"], "contrast": "t1,t2"}
    expected = bundle.translate(dataset_dir, tmp_path / "one", **both)
    capsys.readouterr()
    cohort.translate(dataset_dir, tmp_path / "many", workers=1, **both)
    assert contents(tmp_path / "many") == contents(expected)
    assert re.findall(r"^translate: (\d) of (\d) cases, ", capsys.readouterr().err, re.M)[-1] == ("4", "4")


@pytest.mark.parametrize("options", [{}, {"workers": 0}, {"workers": 2, "scheduler": "tcp://127.0.0.1:8786"}])
def test_workers_or_a_scheduler(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected workers, 1 or more, or a scheduler, got"):
        cohort.translate(tmp_path, tmp_path / "mr", **options)
