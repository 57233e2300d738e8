# SPDX-License-Identifier: Apache-2.0
"""Core seconds of several workers against one process on the same cases: ``python tests/benchmarks/cohort.py``."""

from __future__ import annotations

import argparse
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
        one = measure(folder, "one")
        many = measure(folder, "many", "--workers", str(parsed.workers))
        results = [
            path for path in (folder / "one").iterdir() if path.name != "run.json"
        ]  # which has times
        same = all(
            path.read_bytes() == (folder / "many" / path.name).read_bytes() for path in results
        )
    ratio = many[0] / one[0]
    sys.stdout.write(f"one process: {one[0]:.1f} core seconds, {one[1]:.1f} s\n")
    sys.stdout.write(
        f"{parsed.workers} workers: {many[0]:.1f} core seconds, {many[1]:.1f} s; {ratio:.2f} times\n"
    )
    sys.stdout.write(f"files identical: {same}\n")


def make_cases(folder: Path, count: int, slices: int) -> None:
    """Sagittal slabs of the phantom, each with noise of its own."""
    write_phantom(folder / "phantom")
    image = nib.load(folder / "phantom" / "phantom.nii.gz")
    middle = image.shape[0] // 2
    slab = image.slicer[middle - slices // 2 : middle - slices // 2 + slices]
    (folder / "ct").mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 10, slab.shape)
        voxels = (np.asarray(slab.dataobj) + noise).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, slab.affine), folder / "ct" / f"case{number:02}.nii.gz")


def measure(folder: Path, name: str, *options: str) -> tuple[float, float]:
    """Core seconds and seconds of a run of the command."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before, started = used(), time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "contourdiff",
        "translate",
        str(folder / "ct"),
        str(folder / name),
        "--fast",
        "-q",
    ]
    subprocess.run([*command, *options], check=True)
    return used() - before, time.perf_counter() - started


if __name__ == "__main__":
    main()
