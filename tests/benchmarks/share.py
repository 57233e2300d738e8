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
from benchmarks.settings import Settings, make_network, make_scheduler, table
from contourdiff.inference import Execution, IndependentCandidates, VolumeInferer, acceleration
from contourdiff.sampling.noise import NoiseStream
from contourdiff.sampling.sampler import Sampler
from contourdiff.sampling.selection import SelectionRules

CANDIDATES, BATCH_SIZE = 4, 8


class Clock:
    """Seconds by name, of functions that are wrapped."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted as ``name``; waits for the graphics card."""

        def call(*args: Any, **kwargs: Any) -> Any:
            _wait()
            start = time.perf_counter()
            answer = function(*args, **kwargs)
            _wait()
            self.seconds[name] += time.perf_counter() - start
            return answer

        return call


def run(settings: Settings, directory: Path) -> dict[str, Any]:
    """Seconds of the network, of checking its accelerated copy, of the noise, and the rest; fastest of three runs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.quick:
        name, contours, source = "tiny", random_contours(4, 32), "noise"
    else:
        volume, source = middle_contours(settings, directory)
        middle = len(volume) // 2
        name, contours = "bundle", torch.from_numpy(volume[middle - 2 : middle + 2])
    network = make_network(name, flash=True).to(device)
    painter = IndependentCandidates(
        Sampler(make_scheduler(), num_inference_steps=settings.steps),
        SelectionRules(candidates=CANDIDATES, max_rounds=1),
        Execution(batch_size=BATCH_SIZE, acceleration="lean", retain_heap=True),
    )
    inferer = VolumeInferer(painter, progress=False)
    inputs = contours[None, None].to(device)
    timed = [
        _once(inferer, inputs, network) for _ in tqdm(range(4), "share", unit="volume", leave=False)
    ][1:]
    fastest = min(timed, key=lambda seconds: seconds["all"])
    told = {"network": name, "slices": len(contours), "contours": source, "steps": settings.steps}
    return {**told, "seconds": fastest, "failures": []}


def report(result: dict[str, Any]) -> str:
    """Markdown of :func:`run`."""
    told = (
        f"Network: {result['network']}; {result['slices']} slices, contours of {result['contours']}, "
        f"{CANDIDATES} candidates, batches of {BATCH_SIZE}, {result['steps']} steps; accelerated before."
    )
    seconds = result["seconds"]
    rows = [(name, value, 100 * value / seconds["all"]) for name, value in seconds.items()]
    return told + "\n\n" + table(("part", "s", "% of all"), rows)


def _once(
    inferer: VolumeInferer, inputs: torch.Tensor, network: torch.nn.Module
) -> dict[str, float]:
    clock = Clock()
    prepare = clock.timed("preparing", acceleration.Accelerator.__call__)

    def prepared(self: acceleration.Accelerator, *args: Any) -> Callable[..., Any]:
        return clock.timed("network", prepare(self, *args))

    draw = NoiseStream.draw
    timed_draw = clock.timed("noise", draw)
    with (
        patch.object(acceleration.Accelerator, "__call__", prepared),
        patch.object(NoiseStream, "draw", lambda self: timed_draw(self)),
    ):
        clock.timed("all", inferer)(inputs, network)
    seconds = {name: clock.seconds[name] for name in ("network", "preparing", "noise")}
    return {
        **seconds,
        "rest": clock.seconds["all"] - sum(seconds.values()),
        "all": clock.seconds["all"],
    }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
