# SPDX-License-Identifier: Apache-2.0
"""Handlers that MONAI lacks: repeatable epochs, gradient clipping, progress, checkpoints, weights, sample pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.engines.utils import IterationEvents
from monai.handlers import CheckpointLoader, CheckpointSaver
from numpy.random import SeedSequence
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from contourdiff.data.atomic import atomic_write, save_figure
from contourdiff.inference.denoiser import Denoiser
from contourdiff.inference.progress import progress_bar
from contourdiff.pictures import image_grid
from contourdiff.sampling.intensity import to_gray_levels
from contourdiff.sampling.neighbor_guided import first_condition
from contourdiff.sampling.noise import CandidatePlace
from contourdiff.sampling.sampler import Sampler

CHECKPOINTS = "checkpoint_epoch=*.pt"


def loss_of_output(output: Mapping[str, Any]) -> Any:
    """Loss in a trainer's output, an ``output_transform`` for logging handlers."""
    return output["loss"]


@dataclass(eq=False)
class EpochSeeder:
    """Seed all generators and ``dataset`` from (seed, epoch) at the start of an epoch: resumed draws are the same."""

    seed: int
    dataset: Any

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed torch, numpy and the random transforms."""
        sequence = SeedSequence([self.seed, engine.state.epoch])
        seed = int(sequence.generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        set_rnd(self.dataset, seed=seed)


@dataclass(eq=False)
class GradientClipper:
    """Clip the norm of the gradient to ``max_norm`` (1 in the paper) before the optimizer's step."""

    max_norm: float = 1.0

    def attach(self, engine: Engine) -> None:
        """Attach to a ``SupervisedTrainer``."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Clip; gradients of mixed precision are unscaled before."""
        if getattr(engine, "scaler", None) is not None:
            engine.scaler.unscale_(engine.optimizer)
        clip_grad_norm_(engine.network.parameters(), self.max_norm)


@dataclass(eq=False)
class TrainingProgress:
    """One line for a whole training: its images, images a second, and the time left, with validations and pictures.

    A step is of ``batch_size`` images. See [`contourdiff.inference.progress.progress_bar`][].
    """

    batch_size: int
    _bar: Any = field(default=None, init=False)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.COMPLETED, self._end)

    def _begin(self, engine: Engine) -> None:
        """Name the epoch; the first one of a resumed training begins where the training was."""
        state: Any = engine.state
        if self._bar is None:
            total = self.batch_size * state.max_epochs * state.epoch_length
            done = self.batch_size * state.iteration
            self._bar = progress_bar(total, "image", initial=done, desc="train: ")
        self._bar.set_description(f"epoch {state.epoch} of {state.max_epochs}", refresh=False)

    def _count(self) -> None:
        self._bar.update(self.batch_size)

    def _end(self) -> None:
        self._bar.close()


@dataclass(eq=False)
class Checkpoints:
    """Save checkpoints with MONAI's ``CheckpointSaver`` and resume from one with its ``CheckpointLoader``.

    ``objects`` are networks, optimizers and schedulers by name. The trainer is saved, too, so a ``CheckpointSaver`` in
    the trainer's own list of handlers cannot do this. The last ``<output_dir>/checkpoint_epoch=<epoch>.pt`` is kept,
    written every ``interval`` epochs. Training resumes from the checkpoint ``resume_from``, loaded to ``device``.
    """

    objects: Mapping[str, Any]
    output_dir: str
    interval: int = 1
    resume_from: str | None = None
    device: Any = "cpu"

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        objects = {"trainer": engine, **self.objects}
        saver = CheckpointSaver(self.output_dir, objects, save_interval=self.interval, n_saved=1)
        saver.attach(engine)
        saved = Events.EPOCH_COMPLETED(every=self.interval)
        engine.add_event_handler(saved, self._remove_others)
        if self.resume_from:
            loader = CheckpointLoader(self.resume_from, objects, map_location=self.device)
            loader.attach(engine)

    @idist.one_rank_only()
    def _remove_others(self, engine: Engine) -> None:
        """Remove the checkpoints of earlier trainings to the folder, of which the saver knows nothing."""
        last = Path(self.output_dir) / f"checkpoint_epoch={engine.state.epoch}.pt"
        if not last.is_file():
            return
        for path in Path(self.output_dir).glob(CHECKPOINTS):
            if path != last:
                path.unlink(missing_ok=True)


def newest_checkpoint(output_dir: str | Path) -> Path | None:
    """The last file that [`Checkpoints`][] wrote to a folder; ``None`` if there is none."""
    checkpoints = Path(output_dir).glob(CHECKPOINTS)
    return max(checkpoints, key=os.path.getmtime, default=None)


@dataclass(eq=False)
class WeightsSaver:
    """Write a network's state dict to ``<output_dir>/<file>``, whole, every ``interval`` epochs and at the end."""

    network: nn.Module
    output_dir: str
    interval: int = 1
    file: str = "model.pt"

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
        engine.add_event_handler(Events.COMPLETED, self)

    @idist.one_rank_only()
    def __call__(self, engine: Engine) -> None:
        """Write the file."""
        state = {}
        for key, value in self.network.state_dict().items():
            state[key] = value.detach().cpu()
        path = Path(self.output_dir) / self.file
        with atomic_write(path) as aside:
            torch.save(state, aside)


@dataclass(eq=False)
class SamplePictures:
    """Translate ``count`` held-out slices every ``interval`` epochs, evenly spread over the dataset.

    Image, contour and translation of all are drawn in ``<output_dir>/translations_<epoch>.png``. Items of the dataset
    have ``image (1, H, W)`` in [-1, 1], ``contour (C, H, W)`` and, for several contrasts, ``contrast``; ``device`` is
    that of the network.
    """

    network: nn.Module
    dataset: Sequence[dict[str, Tensor]]
    sampler: Sampler
    output_dir: str
    interval: int = 10
    count: int = 6
    device: torch.device | str = "cpu"

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    @idist.one_rank_only()
    def __call__(self, engine: Engine) -> None:
        """Translate and draw; the network's mode and the random state of the training stay the same."""
        total = len(self.dataset)
        count = min(self.count, total)
        spread = np.linspace(0, total - 1, count)
        rounded = spread.round().astype(int)
        positions = rounded.tolist()
        items = [self.dataset[position] for position in positions]
        first_conditions = [first_condition(item) for item in items]
        conditions = torch.stack(first_conditions)
        conditions = conditions.to(self.device)
        contrasts = None
        if "contrast" in items[0]:
            contrasts = [int(item.get("contrast", 0)) for item in items]
        places = [CandidatePlace("validation", position, 0, 0) for position in positions]
        denoise = Denoiser(self.network, self.sampler, batch_size=len(items))
        translations = denoise(conditions, places, class_labels=contrasts)
        images = [to_gray_levels(item["image"][0]) for item in items]
        contours = 255 * conditions[:, 0]
        rows = [
            images,
            list(contours.cpu()),
            list(translations.cpu()),
        ]
        titles = [["image"], ["contour"], ["translation"]]
        figure = image_grid(rows, titles)
        path = Path(self.output_dir) / f"translations_{engine.state.epoch:05d}.png"
        save_figure(figure, path, dpi=80)
