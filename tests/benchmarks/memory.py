# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a translation against slices and batch size, each measured in a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.contours import random_contours
from benchmarks.settings import MIB, Settings, make_inferer, make_network, table_of
from contourdiff.inference import Execution
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
    environment = {**os.environ, "PYTHONPATH": paths}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    batch, growth = json.loads(output)
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
    size_px = 64 if settings.quick else 256
    network = "tiny" if settings.quick else "bundle"
    batch_sizes = BATCH_SIZES[:1] if settings.quick else BATCH_SIZES
    sizes = itertools.product(batch_sizes, SLICES)
    jobs = [("convolution", slices, batch_size) for batch_size, slices in sizes]
    jobs += [(network, 8, batch_size) for batch_size in batch_sizes]
    rows = []
    failures = []
    for name, slices, batch_size in tqdm(jobs, "memory", unit="process", leave=False):
        row = measure(name, slices, batch_size, size_px)
        rows.append(row)
        if name == "convolution" and not row["holds"]:
            failures.append(
                f"{name}, {slices} slices, batches of {batch_size}: the volume adds "
                f"{row['the volume adds, MiB']:.0f} MiB, allowed are {bound_mib(slices, size_px):.0f}"
            )
    return {"size_px": size_px, "rows": rows, "failures": failures}


def report(result: dict[str, Any]) -> str:
    """Markdown of :func:`run`."""
    description = (
        f"Slices of {result['size_px']} x {result['size_px']}, {CANDIDATES} candidates, one step, lean, heap "
        "retained. Above imports, network and input,\n\n"
        f"    peak <= what a batch takes + {MAX_VOLUMES} x volume + {SLACK_MIB:g} MiB,   volume = slices x H x W x 4 B"
        f"\n\nThe bound {'does not hold' if result['failures'] else 'holds'}. It is measured with one convolution for "
        "a network, so that a batch takes little; the other network tells what a batch takes."
    )
    return f"{description}\n\n{table_of(result['rows'])}"


def _peak_mib() -> float:
    """Peak resident memory of this program; on Linux without that of the process that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def _present_mib() -> float:
    """Resident memory at present, where the system tells; else the peak."""
    pages = Path("/proc/self/statm")
    if not pages.is_file():
        return _peak_mib()
    resident = int(pages.read_text().split()[1])
    return resident * resource.getpagesize() / MIB


def _work(job: dict[str, Any]) -> None:
    network = make_network(job["network"], flash=True)
    contours = random_contours(job["slices"], job["size_px"])[None, None]
    rules = SelectionRules(candidates=CANDIDATES, max_rounds=1)
    execution = Execution(batch_size=job["batch_size"], acceleration="lean", retain_heap=True)
    inferer = make_inferer(1, rules, execution)
    before = _present_mib()
    inferer(contours[:, :, :WARM_UP_SLICES].clone(), network)
    batch = _peak_mib() - before
    between = _present_mib()
    inferer(contours, network)
    sys.stdout.write(json.dumps([batch, _peak_mib() - between]) + "\n")


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
