# SPDX-License-Identifier: Apache-2.0
"""Length and learning rates of a baseline's training, its pictures, and the record of a finished one."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from contourdiff.data.atomic import save_figure, write_text
from contourdiff.pictures import image_grid
from contourdiff.sampling.intensity import to_gray_levels
from contourdiff_lab.baselines.generators import image_of

RECORD = "trained.json"
"""Record of a finished training, in its folder."""


class TrainingBudget:
    """End a training when its time is spent, and decay its learning rates linearly over the second half.

    The half is that of all iterations or of ``minutes`` of wall clock, whichever is reached first; rates go from those
    that the optimizers start with to 0. ``minutes`` count over resumes, from the last checkpoint, if this object is
    among its objects. ``None`` sets no limit. Raises ``ValueError`` unless ``minutes`` are positive.
    """

    def __init__(
        self, optimizers: Mapping[str, torch.optim.Optimizer], minutes: float | None = None
    ) -> None:
        if minutes is not None and not minutes > 0:
            raise ValueError(f"minutes must be positive, or null for no limit, got {minutes}")
        self._rates = [
            (optimizer, [group["lr"] for group in optimizer.param_groups])
            for optimizer in optimizers.values()
        ]
        self.minutes = minutes
        self._before, self._started = 0.0, time.perf_counter()

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._set_rates)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check)

    @property
    def seconds(self) -> float:
        """Wall clock of the training so far."""
        return self._before + time.perf_counter() - self._started

    def share(self, engine: Engine) -> float:
        """Share of the training that is done, of its iterations or its time: 1 at the end."""
        state = engine.state
        of_iterations = state.iteration / ((state.max_epochs or 0) * (state.epoch_length or 0) or 1)
        return min(
            max(of_iterations, 0.0 if self.minutes is None else self.seconds / (60 * self.minutes)),
            1.0,
        )

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far, for a checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count on from the seconds of a checkpoint."""
        self._before, self._started = float(state["seconds"]), time.perf_counter()

    def _start(self, engine: Engine) -> None:
        self._started = time.perf_counter()

    def _set_rates(self, engine: Engine) -> None:
        factor = min(1.0, 2 * (1 - self.share(engine)))
        for optimizer, rates in self._rates:
            for group, rate in zip(
                optimizer.param_groups, rates, strict=True
            ):  # groups are new after a resume
                group["lr"] = rate * factor

    def _check(self, engine: Engine) -> None:
        if self.minutes is not None and self.seconds >= 60 * self.minutes:
            engine.terminate()


@dataclass(eq=False)
class CyclePictures:
    """Translate ``count`` slices of each side, there and back, every ``interval`` epochs and at the end.

    Slices are evenly spread over the datasets, whose items have ``image (1, H, W)`` in [-1, 1]. All are drawn in
    ``<output_dir>/translations_<epoch>.png``: CT, its MR, and back; MR, its CT, and back.
    """

    networks: nn.ModuleDict
    ct: Sequence[dict[str, Tensor]]
    mr: Sequence[dict[str, Tensor]]
    output_dir: str
    interval: int = 1
    count: int = 6
    device: torch.device | str = "cpu"

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
        engine.add_event_handler(Events.COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Translate and draw."""
        rows: dict[str, list[Tensor]] = {}
        generators = ("ct_to_mr", "mr_to_ct")
        for name, other, dataset in (("CT", "MR", self.ct), ("MR", "CT", self.mr)):
            first, second = generators if name == "CT" else generators[::-1]
            positions = np.linspace(0, len(dataset) - 1, self.count).round().astype(int)
            images = [
                torch.as_tensor(dataset[int(position)]["image"])[None].to(self.device)
                for position in positions
            ]
            there = [image_of(self.networks[first](image)) for image in images]
            back = [image_of(self.networks[second](image)) for image in there]
            for title, row in (
                (name, images),
                (f"{name} to {other}", there),
                (f"{name} to {other} and back", back),
            ):
                rows[title] = [to_gray_levels(image[0, 0].float().cpu()) for image in row]
        path = Path(self.output_dir) / f"translations_{engine.state.epoch:05d}.png"
        figure = image_grid(list(rows.values()), [[title] for title in rows])
        save_figure(figure, path, dpi=80)


def counts(trainer: Engine, budget: TrainingBudget, batch_size: int) -> dict[str, float]:
    """Seconds of wall clock, iterations, and images of each side that were seen."""
    iterations = trainer.state.iteration
    return {
        "seconds": round(budget.seconds, 1),
        "iterations": iterations,
        "images": iterations * batch_size,
    }


def record_training(
    trainer: Engine,
    budget: TrainingBudget,
    networks: nn.Module,
    output_dir: str | Path,
    batch_size: int,
    settings: Mapping[str, Any],
) -> None:
    """Write ``<output_dir>/trained.json``: the last step of a config; nothing for a training that was stopped.

    The record has the method, seconds of wall clock, iterations, images of each side that were seen, trained
    parameters, and the ``settings`` unchanged.
    """
    if budget.share(trainer) < 1:
        return
    record = {
        "method": settings["method"],
        **counts(trainer, budget, batch_size),
        "parameters": sum(parameter.numel() for parameter in networks.parameters()),
        "settings": settings,
    }
    write_text(Path(output_dir) / RECORD, json.dumps(record, indent=2) + "\n")
