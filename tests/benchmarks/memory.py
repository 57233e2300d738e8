# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a translation against slices and batch size, each measured in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.contours import random_contours
from benchmarks.settings import MIB, Settings, make_network, make_scheduler, table
from contourdiff.inference import Execution, IndependentCandidates, VolumeInferer
from contourdiff.sampling.sampler import Sampler
from contourdiff.sampling.selection import SelectionRules

SLICES = (16, 64, 256)
BATCH_SIZES = (4, 8, 16)
CANDIDATES = 4
MAX_VOLUMES = 4
"""Float32 volumes that a translation may add: framed contours, result, its stack, and one for waste."""
SLACK_MIB = 16.0
"""What threads and small objects may add."""
WARM_UP_SLICES = 4


def growth_mib(network: str, slices: int, batch_size: int, size_px: int) -> tuple[float, float]:
    """Resident memory that a translation adds, in MiB, measured in a new process.

    A single step is made, for memory does not depend on steps.

    Returns:
        Peak of a first small volume above imports, network and contours: what a batch
        takes, with the accelerated copy. Then, the peak of the whole volume above what is resident after the small one.
    """
    job = {"network": network, "slices": slices, "batch_size": batch_size, "size_px": size_px}
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(job)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    batch, growth = json.loads(done.stdout)
    return float(batch), float(growth)


def volume_mib(slices: int, size_px: int) -> float:
    """Size of one float32 volume, in MiB."""
    return slices * size_px**2 * 4 / MIB


def bound_mib(slices: int, size_px: int) -> float:
    """What the slices of a volume may add to the memory of a batch, in MiB."""
    return MAX_VOLUMES * volume_mib(slices, size_px) + SLACK_MIB


def measure(network: str, slices: int, batch_size: int, size_px: int) -> dict[str, Any]:
    """One row of the table."""
    batch, growth = growth_mib(network, slices, batch_size, size_px)
    return {
        "network": network,
        "slices": slices,
        "batch size": batch_size,
        "a batch takes, MiB": batch,
        "volume, MiB": volume_mib(slices, size_px),
        "the volume adds, MiB": growth,
        "volumes added": growth / volume_mib(slices, size_px),
        "holds": growth <= bound_mib(slices, size_px),
    }


def run(settings: Settings, directory: Path) -> dict[str, Any]:
    """Rows of all measurements; ``failures`` where memory grows faster than the volumes on the model's grid."""
    size_px, network = (64, "tiny") if settings.quick else (256, "bundle")
    batch_sizes = BATCH_SIZES[:1] if settings.quick else BATCH_SIZES
    jobs = [("convolution", slices, batch_size) for batch_size in batch_sizes for slices in SLICES]
    jobs += [(network, 8, batch_size) for batch_size in batch_sizes]
    bar = tqdm(jobs, "memory", unit="process", leave=False)
    rows = [measure(name, slices, batch_size, size_px) for name, slices, batch_size in bar]
    failures = [
        f"{row['network']}, {row['slices']} slices, batches of {row['batch size']}: the volume adds "
        f"{row['the volume adds, MiB']:.0f} MiB, allowed are {bound_mib(row['slices'], size_px):.0f}"
        for row in rows
        if row["network"] == "convolution" and not row["holds"]
    ]
    return {"size_px": size_px, "rows": rows, "failures": failures}


def report(result: dict[str, Any]) -> str:
    """Markdown of :func:`run`."""
    told = (
        f"Slices of {result['size_px']} x {result['size_px']}, {CANDIDATES} candidates, one step, lean, heap "
        "retained. Above imports, network and input,\n\n"
        f"    peak <= what a batch takes + {MAX_VOLUMES} x volume + {SLACK_MIB:g} MiB,   volume = slices x H x W x 4 B"
        f"\n\nThe bound {'does not hold' if result['failures'] else 'holds'}. It is measured with one convolution for "
        "a network, so that a batch takes little; the other network tells what a batch takes."
    )
    columns = list(result["rows"][0])
    return (
        told + "\n\n" + table(columns, [[row[name] for name in columns] for row in result["rows"]])
    )


def _peak_mib() -> float:
    """Peak resident memory of this program; on Linux without that of the process that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def _present_mib() -> float:
    """Resident memory at present, where the system tells; else the peak."""
    pages = Path("/proc/self/statm")
    return (
        int(pages.read_text().split()[1]) * resource.getpagesize() / MIB
        if pages.is_file()
        else _peak_mib()
    )


def _work(job: dict[str, Any]) -> None:
    network = make_network(job["network"], flash=True)
    contours = random_contours(job["slices"], job["size_px"])[None, None]
    painter = IndependentCandidates(
        Sampler(make_scheduler(), num_inference_steps=1),
        SelectionRules(candidates=CANDIDATES, max_rounds=1),
        Execution(batch_size=job["batch_size"], acceleration="lean", retain_heap=True),
    )
    inferer = VolumeInferer(painter, progress=False)
    before = _present_mib()
    inferer(contours[:, :, :WARM_UP_SLICES].clone(), network)
    batch, between = _peak_mib() - before, _present_mib()
    inferer(contours, network)
    sys.stdout.write(json.dumps([batch, _peak_mib() - between]) + "\n")


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
