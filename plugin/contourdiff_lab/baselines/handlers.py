# SPDX-License-Identifier: Apache-2.0
"""Handlers of a baseline's training: time and learning rate, pictures, and the record."""

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
PICTURE_ROWS = ("CT", "CT to MR", "CT to MR and back", "MR", "MR to CT", "MR to CT and back")


class TrainingBudget:
    """End a training when its time is spent, and decay its learning rates linearly over the second half.

    Rates start to fall when half of the iterations or of ``minutes`` has passed, whichever comes first; they go from
    those that the optimizers start with to 0.

    Args:
        optimizers: their learning rates decay.
        minutes: wall clock of the training; ``None`` for no limit. Counted over resumes, from the last checkpoint, if
            this object is among those of the checkpoint.

    Raises:
        ValueError: unless ``minutes`` are positive.
    """

    def __init__(
        self, optimizers: Mapping[str, torch.optim.Optimizer], minutes: float | None = None
    ) -> None:
        if minutes is not None and not minutes > 0:
            raise ValueError(f"minutes must be positive, or null for no limit, got {minutes}")
        self.minutes = minutes
        self._optimizers = list(optimizers.values())
        self._start_rates = []
        for optimizer in self._optimizers:
            rates = [group["lr"] for group in optimizer.param_groups]
            self._start_rates.append(rates)
        self._seconds_before = 0.0
        self._started = time.perf_counter()

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._set_rates)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check)

    @property
    def seconds(self) -> float:
        """Wall clock of the training so far."""
        return self._seconds_before + time.perf_counter() - self._started

    def share(self, engine: Engine) -> float:
        """Share of the training that is done, of its iterations or its time: 1 at the end."""
        state = engine.state
        iterations = (state.max_epochs or 0) * (state.epoch_length or 0)
        share = state.iteration / max(iterations, 1)
        if self.minutes is not None:
            share = max(share, self.seconds / (60 * self.minutes))
        return min(share, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far, for a checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count on from the seconds of a checkpoint."""
        self._seconds_before = float(state["seconds"])
        self._started = time.perf_counter()

    def _start(self, engine: Engine) -> None:
        self._started = time.perf_counter()

    def _set_rates(self, engine: Engine) -> None:
        factor = min(1.0, 2 * (1 - self.share(engine)))
        for optimizer, rates in zip(self._optimizers, self._start_rates, strict=True):
            groups = optimizer.param_groups  # new ones after a resume
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * factor

    def _check(self, engine: Engine) -> None:
        if self.minutes is not None and self.seconds >= 60 * self.minutes:
            engine.terminate()


@dataclass(eq=False)
class CyclePictures:
    """Draw slices of each side with their translations there and back, every ``interval`` epochs and at the end.

    The picture is ``<output_dir>/translations_<epoch>.png``: CT, its MR, and back; MR, its CT, and back.

    Args:
        networks: has the generators ``ct_to_mr`` and ``mr_to_ct``.
        ct: dataset whose items have ``image (1, H, W)`` in [-1, 1].
        mr: the same for MR.
        output_dir: folder of the pictures.
        interval: epochs between pictures.
        count: slices of each side, evenly spread over its dataset.
        device: of the networks.
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
        ct_to_mr = self.networks["ct_to_mr"]
        mr_to_ct = self.networks["mr_to_ct"]
        rows = self._there_and_back(self.ct, ct_to_mr, mr_to_ct)
        rows += self._there_and_back(self.mr, mr_to_ct, ct_to_mr)
        figure = image_grid(rows, titles=[[title] for title in PICTURE_ROWS])
        name = f"translations_{engine.state.epoch:05d}.png"
        save_figure(figure, Path(self.output_dir) / name, dpi=80)

    def _there_and_back(
        self, dataset: Sequence[dict[str, Tensor]], there: nn.Module, back: nn.Module
    ) -> list[list[Tensor]]:
        """Three rows of gray levels ``(H, W)``: slices, their translations, and those translated back."""
        rows: list[list[Tensor]] = [[], [], []]
        positions = np.linspace(0, len(dataset) - 1, self.count).round().astype(int)
        for position in positions:
            image = torch.as_tensor(dataset[int(position)]["image"])[None].to(self.device)
            translation = image_of(there(image))
            cycled = image_of(back(translation))
            for row, picture in zip(rows, (image, translation, cycled), strict=True):
                row.append(to_gray_levels(picture[0, 0].float().cpu()))
        return rows


def counts(trainer: Engine, budget: TrainingBudget, batch_size: int) -> dict[str, float]:
    """Seconds of wall clock, iterations, and images of each side that were seen."""
    iterations = trainer.state.iteration
    return {
        "seconds": round(budget.seconds, 1),
        "iterations": iterations,
        "images": iterations * batch_size,
    }


def record_training(
    method: str,
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
        "method": method,
        **counts(trainer, budget, batch_size),
        "parameters": sum(parameter.numel() for parameter in networks.parameters()),
        "settings": settings,
    }
    write_text(Path(output_dir) / RECORD, json.dumps(record, indent=2) + "\n")
