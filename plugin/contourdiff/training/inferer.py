# SPDX-License-Identifier: Apache-2.0
"""Batches (image, contour, noise, timestep) and network outputs of the trainings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from monai.engines import DiffusionPrepareBatch
from monai.inferers import DiffusionInferer, SimpleInferer
from monai.networks.schedulers import Scheduler
from torch import Tensor, nn

from contourdiff.limits import check_number, check_whole
from contourdiff.sampling.neighbor_guided import EMPTY
from contourdiff.training.distributed import rows_of_process


def in_bfloat16(inputs: Tensor, enabled: bool) -> torch.autocast:
    """Context that runs a network in bfloat16, on any device; the ``amp`` of MONAI's engines is CUDA only."""
    return torch.autocast(inputs.device.type, torch.bfloat16, enabled)


@dataclass(eq=False)
class ContourDiffusionInferer(DiffusionInferer):
    """MONAI's ``DiffusionInferer`` with the contour concatenated to the noisy image: ``(x_t, c)`` in the paper.

    ``amp`` runs the network under autocast, see [`in_bfloat16`][].
    """

    scheduler: Scheduler
    amp: bool = False

    def __post_init__(self) -> None:
        super().__init__(self.scheduler)

    def __call__(  # type: ignore[override]
        self,
        inputs: Tensor,
        network: nn.Module,
        noise: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Network output for the noised ``inputs``, float32.

        Images and noise are ``(B, 1, H, W)``, conditions ``(B, C, H, W)``, timesteps and, for a network of several
        contrasts, class labels ``(B,)``.
        """
        forward: Any = network
        if class_labels is not None:
            forward = partial(network, class_labels=class_labels)
        with in_bfloat16(inputs, self.amp):
            output = super().__call__(inputs, forward, noise, timesteps, condition, mode="concat")
        return output.float()


@dataclass(eq=False)
class AutocastInferer(SimpleInferer):
    """Call a network under autocast, see [`in_bfloat16`][]."""

    bfloat16: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The network's output for ``inputs (B, C, H, W)``, float32."""
        with in_bfloat16(inputs, self.bfloat16):
            output: Tensor = super().__call__(inputs, network, *args, **kwargs)
        return output.float()


@dataclass(eq=False)
class ContourPrepareBatch(DiffusionPrepareBatch):
    """MONAI's ``DiffusionPrepareBatch`` for contours, with the target of the scheduler's prediction type.

    Args:
        scheduler: of prediction type ``epsilon`` or ``v_prediction``.
        timestep_draws: a timestep is the largest of this many uniform draws; 2 or more train more on high noise.
        contour_dropout: probability of an empty contour; 1 trains without any condition.
        neighbor_probability: probability that an item's ``neighbor`` in [-1, 1], if any, is given, or else is empty.
        fixed_seed: the same noise and evenly spread timesteps for every batch, for comparable validation losses.
    """

    scheduler: Scheduler
    timestep_draws: int = 1
    contour_dropout: float = 0.0
    neighbor_probability: float = 0.2
    fixed_seed: int | None = None

    def __post_init__(self) -> None:
        super().__init__(self.scheduler.num_train_timesteps, condition_name="contour")
        check_whole("timestep_draws", self.timestep_draws, 1, 1000)
        check_number("contour_dropout", self.contour_dropout, 0, 1)
        check_number("neighbor_probability", self.neighbor_probability, 0, 1)

    def __call__(self, batchdata: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Images, target, and a dictionary of noise, timesteps, conditions and, for several contrasts, labels."""
        conditions = torch.as_tensor(batchdata["contour"])
        if self.contour_dropout:
            conditions = _kept_or(0, conditions, 1 - self.contour_dropout)
        if "neighbor" in batchdata:
            neighbors = torch.as_tensor(batchdata["neighbor"])
            neighbors = _kept_or(EMPTY, neighbors, self.neighbor_probability)
            conditions = torch.cat([conditions, neighbors], dim=1)
        batch = {**batchdata, "contour": conditions}
        prepared = super().__call__(batch, *args, **kwargs)
        if "contrast" in batchdata:
            labels = torch.as_tensor(batchdata["contrast"])
            images = prepared[0]
            network_arguments = prepared[-1]
            labels = labels.to(images.device)
            network_arguments["class_labels"] = labels
        return prepared

    def get_noise(self, images: Tensor) -> Tensor:
        """Gaussian noise of the shape of ``images``."""
        return batch_noise(images, self.fixed_seed)

    def get_timesteps(self, images: Tensor) -> Tensor:
        """One timestep for each of the ``(B, 1, H, W)`` images: ``(B,)`` long."""
        count = len(images)
        if self.fixed_seed is None:
            draw = partial(self._largest_timesteps, images.device)
            return rows_of_process(draw, count)
        middles = torch.arange(count, device=images.device) + 0.5
        timesteps = middles * self.num_train_timesteps / count
        return timesteps.long()

    def _largest_timesteps(self, device: torch.device, count: int) -> Tensor:
        total = self.num_train_timesteps
        size = (self.timestep_draws, count)
        draws = torch.randint(0, total, size, device=device)
        return draws.amax(dim=0)

    def get_target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Training target: the noise, or the velocity of Salimans and Ho (arXiv 2202.00512).

        Images and noise are ``(B, 1, H, W)``, as is the target; timesteps are ``(B,)``.
        """
        if self.scheduler.prediction_type != "v_prediction":
            return noise
        velocity: Tensor = self.scheduler.get_velocity(images, noise, timesteps)
        return velocity


def batch_noise(images: Tensor, fixed_seed: int | None = None) -> Tensor:
    """Gaussian noise of the shape of ``images (B, C, H, W)``; with ``fixed_seed`` the same for every batch."""
    if fixed_seed is None:
        draw = partial(_noise_like, images)
        return rows_of_process(draw, len(images))
    generator = torch.Generator().manual_seed(fixed_seed)
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    return noise.to(images.device)


def _noise_like(images: Tensor, count: int) -> Tensor:
    """Gaussian noise for ``count`` images."""
    shape = (count, *images.shape[1:])
    return images.new_empty(shape).normal_()


def _kept_or(value: float, items: Tensor, probability: float) -> Tensor:
    """Items ``(B, C, H, W)``, each with the given probability, and filled with ``value`` otherwise."""
    draws = rows_of_process(torch.rand, len(items))
    is_dropped = draws.to(items.device) >= probability
    is_dropped = is_dropped.view(-1, 1, 1, 1)
    return items.masked_fill(is_dropped, value)
