# SPDX-License-Identifier: Apache-2.0
"""On a graphics card: what it can do, what the network makes of it, and the paper's loop against ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.contours import SIZE_PX, middle_contours
from benchmarks.loop import CANDIDATES, TOLERANCE, by_inferer
from benchmarks.sequential import SequentialSampler, Translation, translate_in_sequence
from benchmarks.settings import Settings, make_network, make_scheduler, table
from contourdiff.inference import Execution
from contourdiff.sampling.selection import SelectionRules

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
SIDE = 8192  # of the matrices whose product tells the card's rate
RULES = SelectionRules(candidates=CANDIDATES, max_rounds=2)


def run(settings: Settings, directory: Path) -> dict[str, Any]:
    """Rates in TFLOP/s, milliseconds by batch size, seconds of the loops; ``skipped`` where there is no CUDA."""
    if not torch.cuda.is_available():
        return {"skipped": "no CUDA device", "failures": []}
    left, right = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * SIDE**3 / _seconds(lambda: left @ right, settings.rounds) / 1e12
    curve = [
        row
        for name in ("bundle", "paper")
        for row in _curve(name, rate, settings.rounds, tqdm(BATCH_SIZES, leave=False))
    ]
    volume, source = middle_contours(settings, directory)
    contours = torch.from_numpy(volume).cuda()
    loops, failures = [], []
    for name, steps in (("bundle", settings.steps), ("paper", 4)):
        rows, differing = _loops(name, contours, steps, settings.rounds)
        loops += rows
        failures += differing
    told = {
        "matmul, TFLOP/s": rate,
        "curve": curve,
        "loops": loops,
        "contours": source,
        "slices": len(contours),
    }
    return {**told, "failures": failures}


def report(result: dict[str, Any]) -> str:
    """Markdown of :func:`run`."""
    if "skipped" in result:
        return f"Skipped: {result['skipped']}."
    curve, loops = result["curve"], result["loops"]
    return "\n\n".join(
        [
            f"Product of bfloat16 matrices of side {SIDE}: {result['matmul, TFLOP/s']:.0f} TFLOP/s.",
            table(list(curve[0]), [list(row.values()) for row in curve]),
            f"{result['slices']} slices, contours of {result['contours']}:",
            table(list(loops[0]), [list(row.values()) for row in loops]),
        ]
    )


@torch.inference_mode()
def _curve(name: str, rate: float, rounds: int, batch_sizes: tqdm[int]) -> list[dict[str, Any]]:
    """One forward in bfloat16 for each batch size."""
    network, rows = make_network(name, flash=True).cuda(), []
    x = torch.randn(max(BATCH_SIZES), 2, SIZE_PX, SIZE_PX, device="cuda")
    timesteps = torch.full((len(x),), 500, device="cuda")
    with FlopCounterMode(display=False) as counter:
        network(x[:1], timesteps[:1])
    for batch in batch_sizes:

        def forward(batch: int = batch) -> torch.Tensor:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                answer: torch.Tensor = network(x[:batch], timesteps[:batch])
            return answer

        seconds = _seconds(forward, rounds)
        achieved = counter.get_total_flops() * batch / seconds / 1e12
        row = {
            "network": name,
            "GFLOP an item": counter.get_total_flops() / 1e9,
            "batch size": batch,
        }
        row |= {
            "ms an item": 1000 * seconds / batch,
            "TFLOP/s": achieved,
            "% of matmul": 100 * achieved / rate,
        }
        rows.append(row)
    return rows


def _loops(
    name: str, contours: torch.Tensor, steps: int, rounds: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """The paper's loop in float32; ours in float32 at its batch size, checked against it; ours as on a card."""
    plain, fused = make_network(name).cuda(), make_network(name, flash=True).cuda()

    def paper() -> Translation:
        with torch.no_grad():
            sampler = SequentialSampler(plain, make_scheduler(), steps, CANDIDATES)
            return translate_in_sequence(contours, sampler, RULES)

    def ours(batch_size: int, amp: bool) -> Callable[[], Translation]:
        return by_inferer(fused, contours, steps, RULES, Execution(batch_size=batch_size, amp=amp))

    ways: dict[str, Callable[[], Translation]] = {
        "paper": paper,
        f"ours, batches of {CANDIDATES}": ours(CANDIDATES, False),
        "ours, bfloat16, batches of 64": ours(64, True),
    }
    made = [way() for way in ways.values()]
    largest = float((made[1].volume - made[0].volume).abs().max())
    failures = [f"{name} on the card: picks differ"] if made[1].picks != made[0].picks else []
    if not largest <= TOLERANCE:
        failures.append(
            f"{name} on the card: {largest:.3g} gray levels apart, expected at most {TOLERANCE}"
        )
    seconds = {told: _seconds(way, rounds) for told, way in ways.items()}
    rows = [
        {"network": name, "steps": steps, "way": told, "calls": each.calls, "s": seconds[told],
         "times the last": seconds[told] / list(seconds.values())[-1]}
        for told, each in zip(ways, made, strict=True)
    ]  # fmt: skip
    return rows, failures


def _seconds(work: Callable[[], Any], rounds: int) -> float:
    """Median of at least three rounds, after a warm-up."""
    times = []
    for _ in range(max(rounds, 3) + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[1:])
