# SPDX-License-Identifier: Apache-2.0
"""A solver with its schedule: from a network's predictions to clean images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from contourdiff.sampling import solvers
from contourdiff.sampling.solvers import PREDICTION_TYPES, Draw, NoiseLevel, OnStep

SOLVERS = ("ddim", "ddpm", "dpm_solver")
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(x (B, 1, H, W), timesteps (B,)) -> (B, 1, H, W)``, a network given its contours."""


@dataclass(frozen=True)
class Sampler:
    """Solver, number of steps and training schedule, validated before any work.

    Args:
        scheduler: noise scheduler of the training; its ``alphas_cumprod`` and ``prediction_type`` are used.
        solver: ``"ddim"``; ``"dpm_solver"`` with Karras' levels; or ``"ddpm"``, the paper's ancestral sampler over
            every training timestep, which ignores the next two.
        num_inference_steps: network calls for a candidate.
        eta: DDIM's noise, 0 for none.
        num_refinement_steps: DDIM steps of the second network of a cascade.

    Raises ``ValueError`` for an unknown solver or prediction type, a negative ``eta``, or too many steps.
    """

    scheduler: Any
    solver: str = "ddim"
    num_inference_steps: int = 50
    eta: float = 0.0
    num_refinement_steps: int = 4
    schedule: list[NoiseLevel] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {SOLVERS}, got {self.solver!r}")
        if not self.eta >= 0:
            raise ValueError(f"eta must be 0 or more, got {self.eta}")
        if (kind := str(self.scheduler.prediction_type)) not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type must be one of {PREDICTION_TYPES}, got {kind!r}")
        alphas_cumprod = self.scheduler.alphas_cumprod
        schedule = solvers.karras_schedule if self.solver == "dpm_solver" else solvers.even_schedule
        steps = len(alphas_cumprod) if self.solver == "ddpm" else self.num_inference_steps
        object.__setattr__(self, "schedule", schedule(alphas_cumprod, steps))

    @property
    def refinement(self) -> Sampler:
        """Sampler of the second network of a cascade, which has little left to decide: a few steps of DDIM."""
        return replace(self, solver="ddim", num_inference_steps=self.num_refinement_steps, eta=0.0)

    def __call__(self, predict: Predict, draw: Draw, on_step: OnStep | None = None) -> torch.Tensor:
        """Clean images ``(B, 1, H, W)`` in [-1, 1], from the first noise that ``draw`` returns.

        A solver that adds noise draws again at each step; ``on_step`` receives each step's number and clean image.
        """
        x = draw()
        steps = [level.timestep for level in self.schedule]
        batches = (
            torch.tensor(steps, dtype=torch.long, device=x.device)[:, None]
            .expand(-1, len(x))
            .contiguous()
        )
        timesteps = dict(zip(self.schedule, batches, strict=True))

        def denoise(x: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
            output = predict(x, timesteps[level])
            return solvers.clean_image(output, x, level.alpha_bar, self.scheduler.prediction_type)

        if self.solver == "ddpm":
            return solvers.ddpm(denoise, x, self.schedule, draw=draw, on_step=on_step)
        if self.solver == "dpm_solver":
            return solvers.dpm_solver(denoise, x, self.schedule, on_step=on_step)
        return solvers.ddim(denoise, x, self.schedule, eta=self.eta, draw=draw, on_step=on_step)
