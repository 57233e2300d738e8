# SPDX-License-Identifier: Apache-2.0
"""Batches (image, contour, noise, timestep) and network outputs of the diffusion training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from monai.engines import DiffusionPrepareBatch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import Scheduler
from torch import Tensor, nn

from contourdiff.sampling.neighbor_guided import EMPTY
from contourdiff.training.distributed import rows_of_process


@dataclass(eq=False)
class ContourDiffusionInferer(DiffusionInferer):
    """MONAI's ``DiffusionInferer`` with the contour concatenated to the noisy image: ``(x_t, c)`` in the paper.

    ``amp`` runs the network under autocast in bfloat16, on any device; the ``amp`` of MONAI's engines is CUDA only.
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
        forward = network if class_labels is None else partial(network, class_labels=class_labels)
        arguments: dict[str, Any] = {
            "noise": noise,
            "timesteps": timesteps,
            "condition": condition,
            "mode": "concat",
        }
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return super().__call__(inputs, forward, **arguments).float()  # type: ignore[arg-type]


@dataclass(eq=False)
class ContourPrepareBatch(DiffusionPrepareBatch):
    """MONAI's ``DiffusionPrepareBatch`` for contours, with the target of the scheduler's prediction type.

    Args:
        scheduler: noise scheduler; its ``prediction_type`` defines the target, ``epsilon`` or ``v_prediction``.
        condition_name: key of the contour in the batch.
        timestep_draws: a timestep is the largest of this many uniform draws; 2 or more train more on high noise.
        contour_dropout: probability of an empty contour; 1 trains without any condition.
        neighbor_probability: probability that an item's ``neighbor`` in [-1, 1], if any, is given, or else is empty.
        fixed_seed: the same noise and evenly spread timesteps for every batch, for comparable validation losses.
    """

    scheduler: Scheduler
    condition_name: str = "contour"
    timestep_draws: int = 1
    contour_dropout: float = 0.0
    neighbor_probability: float = 0.2
    fixed_seed: int | None = None

    def __post_init__(self) -> None:
        super().__init__(
            num_train_timesteps=self.scheduler.num_train_timesteps,
            condition_name=self.condition_name,
        )
        if self.timestep_draws < 1:
            raise ValueError(f"timestep_draws must be 1 or more, got {self.timestep_draws}")
        for name in ("contour_dropout", "neighbor_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")

    def __call__(self, batchdata: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Images, target, and a dictionary of noise, timesteps, conditions and, for several contrasts, labels."""
        contours = torch.as_tensor(batchdata[self.condition_name])
        if self.contour_dropout:
            contours = torch.where(
                _drawn(1 - self.contour_dropout, contours), contours, torch.zeros_like(contours)
            )
        if "neighbor" in batchdata:
            neighbors = torch.as_tensor(batchdata["neighbor"])
            given = _drawn(self.neighbor_probability, neighbors)
            neighbors = torch.where(given, neighbors, torch.full_like(neighbors, EMPTY))
            contours = torch.cat([contours, neighbors], dim=1)
        prepared = super().__call__({**batchdata, self.condition_name: contours}, *args, **kwargs)
        if "contrast" in batchdata:
            prepared[-1]["class_labels"] = torch.as_tensor(batchdata["contrast"]).to(
                prepared[0].device
            )
        return prepared

    def get_noise(self, images: Tensor) -> Tensor:
        """Gaussian noise of the shape of ``images``."""
        if self.fixed_seed is None:
            shape, kind = images.shape[1:], images.dtype
            return rows_of_process(
                lambda n: torch.randn(n, *shape, dtype=kind, device=images.device), len(images)
            )
        generator = torch.Generator().manual_seed(self.fixed_seed)
        return torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)

    def get_timesteps(self, images: Tensor) -> Tensor:
        """One timestep for each of the ``(B, 1, H, W)`` images: ``(B,)`` long."""
        batch = images.shape[0]
        if self.fixed_seed is None:
            return rows_of_process(
                lambda count: self._largest_timesteps(count, images.device), batch
            )
        return (
            (torch.arange(batch, device=images.device) + 0.5) * self.num_train_timesteps / batch
        ).long()

    def _largest_timesteps(self, count: int, device: torch.device) -> Tensor:
        draws = torch.randint(
            0, self.num_train_timesteps, (self.timestep_draws, count), device=device
        )
        return draws.amax(dim=0)

    def get_target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Training target: the noise, or the velocity of Salimans and Ho (arXiv 2202.00512)."""
        if self.scheduler.prediction_type != "v_prediction":
            return noise
        velocity: Tensor = self.scheduler.get_velocity(images, noise, timesteps)
        return velocity


def _drawn(probability: float, items: Tensor) -> Tensor:
    """One random decision an item, true with the given probability: ``(B, 1, 1, 1)``."""
    return (
        (rows_of_process(torch.rand, len(items)) < probability).view(-1, 1, 1, 1).to(items.device)
    )
