# SPDX-License-Identifier: Apache-2.0
"""Cost against the number of slices: with one round a slice, batches are full and their number is exact."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from benchmarks.contours import random_contours
from benchmarks.settings import Settings, make_network, make_scheduler, table
from contourdiff.inference import Execution, IndependentCandidates, VolumeInferer
from contourdiff.sampling.sampler import Sampler
from contourdiff.sampling.selection import SelectionRules

SLICES = (16, 32, 64, 128, 256, 512)
CANDIDATES, BATCH_SIZE, STEPS, SIZE_PX = 4, 8, 2, 32


def network_calls(slices: int, network: nn.Module) -> tuple[int, float]:
    """Batches that are denoised for ``slices`` slices, one round each, and the seconds that this takes."""
    painter = IndependentCandidates(
        Sampler(make_scheduler(), num_inference_steps=STEPS),
        SelectionRules(candidates=CANDIDATES, max_rounds=1),
        Execution(batch_size=BATCH_SIZE),
    )
    inferer = VolumeInferer(painter, progress=False)
    contours = random_contours(slices, SIZE_PX)
    start = time.perf_counter()
    (result,) = inferer.translate(contours[None, None], network)
    return result.network_calls, time.perf_counter() - start


def expected_calls(slices: int) -> int:
    """Candidates of all slices over the batch size, rounded up."""
    return -(-slices * CANDIDATES // BATCH_SIZE)


def run(settings: Settings, directory: Path) -> dict[str, Any]:
    """Calls and milliseconds a slice for each number of slices; ``failures`` where calls are not as expected."""
    name = "convolution" if settings.quick else "tiny"
    network = make_network(name)
    network_calls(SLICES[0], network)  # warm-up
    rows, failures = [], []
    for slices in tqdm(SLICES, "scaling", unit="volume", leave=False):
        calls, seconds = network_calls(slices, network)
        rows.append({"slices": slices, "calls": calls, "ms a slice": 1000 * seconds / slices})
        if calls != expected_calls(slices):
            failures.append(
                f"{slices} slices cost {calls} calls, expected {expected_calls(slices)}"
            )
    return {"network": name, "rows": rows, "failures": failures}


def report(result: dict[str, Any]) -> str:
    """Markdown of :func:`run`."""
    columns = ("slices", "calls", "ms a slice")
    told = (
        f"Network: {result['network']}; slices of {SIZE_PX} x {SIZE_PX}, {CANDIDATES} candidates, one round, "
        f"batches of {BATCH_SIZE}, {STEPS} steps. Calls must be ceil(slices x {CANDIDATES} / {BATCH_SIZE})."
    )
    return (
        told + "\n\n" + table(columns, [[row[name] for name in columns] for row in result["rows"]])
    )
