# SPDX-License-Identifier: Apache-2.0
"""Batches (image, contour, noise, timestep) and network outputs of the diffusion training."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import DiffusionPrepareBatch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import Scheduler
from torch import nn

from contourdiff.sampling.neighbor_guided import EMPTY


class ContourDiffusionInferer(DiffusionInferer):
    """MONAI's ``DiffusionInferer`` with the contour concatenated to the noisy image: ``(x_t, c)`` in the paper.

    Args:
        scheduler: noise scheduler of the training.
        amp: run the network under autocast in bfloat16, on any device; the ``amp`` of MONAI's engines is CUDA only.
    """

    def __init__(self, scheduler: Scheduler, amp: bool = False) -> None:
        super().__init__(scheduler)
        self.amp = amp

    def __call__(  # type: ignore[override]
        self,
        inputs: torch.Tensor,
        network: nn.Module,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        condition: torch.Tensor,
    ) -> torch.Tensor:
        """Network output for the noised ``inputs``, float32.

        Images, noise and contours are ``(B, 1, H, W)``, timesteps ``(B,)``.
        """
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.amp):
            output = super().__call__(
                inputs,
                network,  # type: ignore[arg-type]  # any module with its signature
                noise=noise,
                timesteps=timesteps,
                condition=condition,
                mode="concat",
            )
        return output.float()


class ContourPrepareBatch(DiffusionPrepareBatch):
    """MONAI's ``DiffusionPrepareBatch`` for contours, with the target of the scheduler's prediction type.

    Args:
        scheduler: noise scheduler; its ``prediction_type`` defines the target, ``epsilon`` or ``v_prediction``.
        condition_name: key of the contour in the batch.
        timestep_draws: a timestep is the largest of this many uniform draws: 1 is uniform, 2 spends more training on
            high noise, where the contour matters most.
        contour_dropout: probability of an empty contour; 1 trains without any condition.
        neighbor_probability: probability that an item's ``neighbor`` in [-1, 1] is concatenated to its contour;
            otherwise an empty one is. Without effect on items that have no ``neighbor``.
        fixed_seed: if given, every batch has the same noise and timesteps, the latter spread evenly, so that
            validation losses of different epochs are comparable.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        condition_name: str = "contour",
        timestep_draws: int = 1,
        contour_dropout: float = 0.0,
        neighbor_probability: float = 0.2,
        fixed_seed: int | None = None,
    ) -> None:
        super().__init__(num_train_timesteps=scheduler.num_train_timesteps, condition_name=condition_name)
        if timestep_draws < 1:
            raise ValueError(f"timestep_draws must be 1 or more, got {timestep_draws}")
        for name, value in (("contour_dropout", contour_dropout), ("neighbor_probability", neighbor_probability)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        self.scheduler = scheduler
        self.contour_dropout = contour_dropout
        self.neighbor_probability = neighbor_probability
        self.timestep_draws = timestep_draws
        self.fixed_seed = fixed_seed

    def __call__(self, batchdata: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """Images, target, and a dictionary of noise, timesteps and conditions."""
        name = str(self.condition_name)
        contours = torch.as_tensor(batchdata[name])
        if self.contour_dropout:
            contours = torch.where(_drawn(1 - self.contour_dropout, contours), contours, torch.zeros_like(contours))
        if "neighbor" in batchdata:
            neighbors = torch.as_tensor(batchdata["neighbor"])
            given = _drawn(self.neighbor_probability, neighbors)
            neighbors = torch.where(given, neighbors, torch.full_like(neighbors, EMPTY))
            contours = torch.cat([contours, neighbors], dim=1)
        return super().__call__({**batchdata, name: contours}, *args, **kwargs)

    def get_noise(self, images: torch.Tensor) -> torch.Tensor:
        """Gaussian noise of the shape of ``images``."""
        if self.fixed_seed is None:
            return torch.randn_like(images)
        generator = torch.Generator().manual_seed(self.fixed_seed)
        return torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)

    def get_timesteps(self, images: torch.Tensor) -> torch.Tensor:
        """One timestep for each of the ``(B, 1, H, W)`` images: ``(B,)`` long."""
        batch = images.shape[0]
        if self.fixed_seed is None:
            draws = torch.randint(0, self.num_train_timesteps, (self.timestep_draws, batch), device=images.device)
            return draws.amax(dim=0)
        spread = (torch.arange(batch, device=images.device) + 0.5) * self.num_train_timesteps / batch
        return spread.long()

    def get_target(self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Training target: the noise, or the velocity of Salimans and Ho (arXiv 2202.00512)."""
        if self.scheduler.prediction_type == "v_prediction":
            velocity: torch.Tensor = self.scheduler.get_velocity(images, noise, timesteps)
            return velocity
        return noise


def _drawn(probability: float, items: torch.Tensor) -> torch.Tensor:
    """One random decision an item, true with the given probability: ``(B, 1, 1, 1)``."""
    return (torch.rand(len(items)) < probability).view(-1, 1, 1, 1).to(items.device)
