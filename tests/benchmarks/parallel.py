# SPDX-License-Identifier: Apache-2.0
"""Core seconds of several workers against one process on the same cases: ``python tests/benchmarks/parallel.py``."""

from __future__ import annotations

import argparse
import filecmp
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contourdiff.phantom import write_phantom


def main() -> None:
    """Translate the same phantoms by one process and by workers; print core seconds and their ratio."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", type=int, default=12)
    options.add_argument("--workers", type=int, default=3)
    options.add_argument("--slices", type=int, default=8, help="sagittal slices of each case")
    parsed = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_cases(folder, parsed.cases, parsed.slices)
        core_s, wall_s = measure(folder, "process")
        workers_core_s, workers_wall_s = measure(
            folder, "workers", "--workers", str(parsed.workers)
        )
        names = [path.name for path in (folder / "process").iterdir()]
        names.remove("run.json")  # it has times
        _, differing, missing = filecmp.cmpfiles(
            folder / "process", folder / "workers", names, shallow=False
        )
    sys.stdout.write(
        f"one process: {core_s:.1f} core seconds, {wall_s:.1f} s\n"
        f"{parsed.workers} workers: {workers_core_s:.1f} core seconds, {workers_wall_s:.1f} s; "
        f"{workers_core_s / core_s:.2f} times\n"
        f"files that differ: {[*differing, *missing]}\n"
    )


def make_cases(folder: Path, count: int, slices: int) -> None:
    """Sagittal slabs of the phantom, each with noise of its own."""
    write_phantom(folder / "phantom")
    image = nib.load(folder / "phantom" / "phantom.nii.gz")
    first = image.shape[0] // 2 - slices // 2
    slab = image.slicer[first : first + slices]
    (folder / "ct").mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 10, slab.shape)
        voxels = (np.asarray(slab.dataobj) + noise).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, slab.affine), folder / "ct" / f"case{number:02}.nii.gz")


def measure(folder: Path, name: str, *options: str) -> tuple[float, float]:
    """Core seconds and seconds of a run of the command."""
    command = [sys.executable, "-m", "contourdiff", "translate"]
    arguments = [str(folder / "ct"), str(folder / name), "--fast", "-q", *options]
    core_s = _core_seconds()
    start = time.perf_counter()
    subprocess.run([*command, *arguments], check=True)
    return _core_seconds() - core_s, time.perf_counter() - start


def _core_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
