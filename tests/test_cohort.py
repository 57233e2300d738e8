# SPDX-License-Identifier: Apache-2.0
"""Many processes give what one gives, to the bit, whatever happens to them."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from contourdiff import bundle, cohort
from helpers import TINY_NETWORK, make_dataset

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install -e '.[scale]'")
psutil = pytest.importorskip("psutil", reason="psutil comes with Dask")
NAMES = tuple(f"case{number:02}" for number in range(12))


@pytest.fixture
def tiny(tiny_weights: Path) -> dict[str, Any]:
    options = {"num_inference_steps": 2, "candidates": 2, "max_rounds": 1, "min_object_mm2": 100.0, "batch_size": 4}
    return {"overlays": ("single",), "network_def": TINY_NETWORK, "ckpt_path": str(tiny_weights), **options}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
