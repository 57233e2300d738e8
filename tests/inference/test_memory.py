# SPDX-License-Identifier: Apache-2.0
"""The memory of a translation: a few copies of the volume, whatever the number of slices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.networks import TINY_NETWORK
from helpers.volumes import ball_ct, write_nifti

PLANE = (320, 320)
SLICES = (60, 260)
COPIES = 3.0
"""Float32 copies of the volume that may lie in memory together at the peak, everything counted; 2.6 by measure."""

CHILD = """
import json, re, sys
from pathlib import Path
from contourdiff.bundle import run_inference_config

dataset_dir, output_dir, settings = json.loads(sys.argv[1])
run_inference_config(dataset_dir, output_dir, **settings)
print("peak in kB:", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def write_body(folder: Path, slices: int) -> Path:
    """A CT of so many equal slices, with a label; no array is larger than the CT itself."""
    ct = np.repeat(ball_ct((3, *PLANE))[1:2], slices, axis=0)
    write_nifti(folder / "ct" / "a.nii.gz", ct, np.eye(4))
    write_nifti(folder / "ct" / "labels" / "a.nii.gz", (ct > 300).astype(np.uint8), np.eye(4))
    return folder


def peak_mb(folder: Path, weights: Path) -> float:
    """The most memory that a process of its own held to translate the folder."""
    settings = {
        "overlays": ["single"],
        "network_def": TINY_NETWORK,
        "ckpt_path": str(weights),
        "num_inference_steps": 1,
        "batch_size": 1,
        "candidates": 1,
        "max_rounds": 1,
        "preview#columns": 1,
        "filter_classes": 2,
        "logging_file": False,
    }
    job = json.dumps([str(folder / "ct"), str(folder / "mr"), settings])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, job], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.rsplit("peak in kB:", 1)[1]) / 1000


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="the peak of a process is read from /proc"
)
def test_memory_is_a_few_copies_of_the_volume(tiny_weights: Path, tmp_path: Path) -> None:
    """Beyond a smaller volume, whose run holds code, network and batch, memory grows with the volume alone."""
    volumes = [slices * PLANE[0] * PLANE[1] * 4 / 1e6 for slices in SLICES]
    peaks = [peak_mb(write_body(tmp_path / str(slices), slices), tiny_weights) for slices in SLICES]
    message = f"peaks of {peaks} MB for volumes of {volumes} MB in float32"
    assert peaks[1] - peaks[0] <= COPIES * (volumes[1] - volumes[0]), message
