# SPDX-License-Identifier: Apache-2.0
"""Share of a translation's time that is spent outside the network."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tqdm import tqdm

from benchmarks.contours import middle_contours, random_contours
from benchmarks.settings import Settings, make_inferer, make_network, table
from contourdiff.inference import Execution, VolumeInferer
from contourdiff.inference.acceleration import Accelerator
from contourdiff.sampling.noise import NoiseStream
from contourdiff.sampling.selection import SelectionRules

CANDIDATES = 4
BATCH_SIZE = 8


class Clock:
    """Seconds by name, of functions that are wrapped."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted as ``name``; waits for the graphics card."""

        def call(*args: Any, **kwargs: Any) -> Any:
            _wait()
            start = time.perf_counter()
            result = function(*args, **kwargs)
            _wait()
            self.seconds[name] += time.perf_counter() - start
            return result

        return call


def run(settings: Settings, directory: Path) -> dict[str, Any]:
    """Seconds of the network, of checking its accelerated copy, of the noise, and the rest; fastest of three runs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.quick:
        source = "noise"
        contours = random_contours(4, 32)
    else:
        volume, source = middle_contours(settings, directory)
        middle = len(volume) // 2
        contours = torch.from_numpy(volume[middle - 2 : middle + 2])
    name = "tiny" if settings.quick else "bundle"
    network = make_network(name, flash=True).to(device)
    rules = SelectionRules(candidates=CANDIDATES, max_rounds=1)
    execution = Execution(batch_size=BATCH_SIZE, acceleration="lean", retain_heap=True)
    inferer = make_inferer(settings.steps, rules, execution)
    inputs = contours[None, None].to(device)
    runs = []
    for _ in tqdm(range(4), "share", unit="volume", leave=False):
        runs.append(_once(inferer, inputs, network))
    return {
        "network": name,
        "slices": len(contours),
        "contours": source,
        "steps": settings.steps,
        "seconds": min(runs[1:], key=lambda seconds: seconds["all"]),  # the first warms up
        "failures": [],
    }


def report(result: dict[str, Any]) -> str:
    """Markdown of :func:`run`."""
    description = (
        f"Network: {result['network']}; {result['slices']} slices, contours of {result['contours']}, "
        f"{CANDIDATES} candidates, batches of {BATCH_SIZE}, {result['steps']} steps; accelerated before."
    )
    seconds = result["seconds"]
    rows = [(name, value, 100 * value / seconds["all"]) for name, value in seconds.items()]
    return f"{description}\n\n{table(('part', 's', '% of all'), rows)}"


def _once(
    inferer: VolumeInferer, inputs: torch.Tensor, network: torch.nn.Module
) -> dict[str, float]:
    clock = Clock()
    prepare = clock.timed("preparing", Accelerator.__call__)

    def prepared(self: Accelerator, *args: Any) -> Callable[..., Any]:
        return clock.timed("network", prepare(self, *args))

    timed_draw = clock.timed("noise", NoiseStream.draw)
    with (
        patch.object(Accelerator, "__call__", prepared),
        patch.object(NoiseStream, "draw", lambda self: timed_draw(self)),
    ):
        clock.timed("all", inferer)(inputs, network)
    seconds = {name: clock.seconds[name] for name in ("network", "preparing", "noise")}
    total = clock.seconds["all"]
    return {**seconds, "rest": total - sum(seconds.values()), "all": total}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
