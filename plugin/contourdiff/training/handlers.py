# SPDX-License-Identifier: Apache-2.0
"""Handlers that MONAI lacks: repeatable epochs, gradient clipping, and pictures of translations while training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from monai.data.utils import set_rnd
from monai.engines.utils import IterationEvents
from monai.networks.schedulers import Scheduler
from torch import nn

from contourdiff.data.atomic import atomic_write
from contourdiff.sampling.neighbor_guided import first_condition
from contourdiff.sampling.noise import CandidateKey, NoiseStream
from contourdiff.sampling.solvers import ddim


class EpochSeeder:
    """Seed everything from (seed, epoch) as an epoch starts, so that a resumed training draws what it would have drawn.

    Args:
        seed: the run's seed.
        dataset: dataset whose random transforms are seeded too.
    """

    def __init__(self, seed: int, dataset: Any) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed torch, numpy and the random transforms."""
        seed = int(np.random.SeedSequence([self.seed, engine.state.epoch]).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        set_rnd(self.dataset, seed=seed)


class GradientClipper:
    """Clip the gradient's norm between the backward pass and the optimizer's step.

    Args:
        max_norm: largest norm; the paper clips at 1.
    """

    def __init__(self, max_norm: float = 1.0) -> None:
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Attach to a ``SupervisedTrainer``."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Clip; gradients of mixed precision are unscaled first."""
        if getattr(engine, "scaler", None) is not None:
            engine.scaler.unscale_(engine.optimizer)
        torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_norm)


class WeightsSaver:
    """Write the state dict of a network as float32 tensors, whole or not at all, every so many epochs and at the end.

    Args:
        network: network to save, here the moving average of the trained one.
        path: file to write, replaced each time.
        interval: epochs between two writes.
    """

    def __init__(self, network: nn.Module, path: str, interval: int = 1) -> None:
        self.network = network
        self.path = Path(path)
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write aside, then rename."""
        state = {key: value.detach().cpu() for key, value in self.network.state_dict().items()}
        with atomic_write(self.path) as aside:
            torch.save(state, aside)


class TranslationPictures:
    """Translate the contours of a few held-out slices now and then, and write one picture: image, contour, translation.

    Args:
        network: network to look at.
        dataset: items with ``image`` in [-1, 1] and ``contour``, both ``(1, H, W)``.
        scheduler: noise scheduler of the training.
        output_dir: pictures go there as ``translations_<epoch>.png``.
        interval: epochs between two pictures.
        count: how many slices, evenly spread over the dataset.
        num_inference_steps: DDIM steps.
        device: where the network is.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Sequence[dict[str, torch.Tensor]],
        scheduler: Scheduler,
        output_dir: str,
        interval: int = 10,
        count: int = 6,
        num_inference_steps: int = 20,
        device: torch.device | str = "cpu",
    ) -> None:
        self.network = network
        self.dataset = dataset
        self.scheduler = scheduler
        self.output_dir = Path(output_dir)
        self.interval = interval
        self.count = count
        self.num_inference_steps = num_inference_steps
        self.device = device

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Translate and draw; the network's mode and the training's random state stay as they were."""
        positions = np.linspace(0, len(self.dataset) - 1, min(self.count, len(self.dataset))).round().astype(int)
        items = [self.dataset[int(position)] for position in positions]
        contours = torch.stack([first_condition(item) for item in items]).to(self.device)
        keys = [CandidateKey(0, "validation", int(position), 0, 0) for position in positions]
        translations = ddim(
            lambda x, t: self.network(torch.cat([x, contours], dim=1), t),
            NoiseStream(keys, (1, *contours.shape[2:]), self.device).draw(),
            alphas_cumprod=self.scheduler.alphas_cumprod,
            num_inference_steps=self.num_inference_steps,
            prediction_type=str(self.scheduler.prediction_type),
        ).cpu()
        figure = Figure(figsize=(2.4 * len(items), 7.2))
        axes = figure.subplots(3, len(items), squeeze=False)
        rows: tuple[Any, ...] = ([item["image"] for item in items], contours[:, :1].cpu(), translations)
        for row, (name, pictures) in enumerate(zip(("image", "contour", "translation"), rows, strict=True)):
            for column, picture in enumerate(pictures):
                low = 0 if name == "contour" else -1
                axes[row, column].imshow(np.asarray(picture[0]).T, cmap="gray", origin="lower", vmin=low, vmax=1)
                axes[row, column].set_axis_off()
            axes[row, 0].set_title(name, fontsize=8, loc="left")
        figure.tight_layout()
        with atomic_write(self.output_dir / f"translations_{engine.state.epoch:05d}.png") as aside:
            figure.savefig(aside, format="png", dpi=80)
