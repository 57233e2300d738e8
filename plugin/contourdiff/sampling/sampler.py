# SPDX-License-Identifier: Apache-2.0
"""A solver with its schedule: from a network's predictions to clean images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from contourdiff.limits import check_choice, check_number, check_whole
from contourdiff.sampling import solvers
from contourdiff.sampling.solvers import PREDICTION_TYPES, DrawNoise, NoiseLevel

SOLVERS = ("ddim", "ddpm", "dpm_solver")
Predict = Callable[[Tensor, Tensor], Tensor]
"""``(x (B, 1, H, W), timesteps (B,)) -> (B, 1, H, W)``, a network given its contours."""


@dataclass(frozen=True)
class Sampler:
    """Solver, number of steps and training schedule, validated before any work.

    Args:
        scheduler: noise scheduler of the training; its ``alphas_cumprod`` and ``prediction_type`` are used.
        solver: ``"ddim"``; ``"dpm_solver"`` with Karras' levels; or ``"ddpm"``, the paper's ancestral sampler over
            every training timestep, which ignores the next two.
        num_inference_steps: network calls for a candidate, at most as many as the training has timesteps.
        eta: DDIM's noise, 0 for none to 1 for that of DDPM's posterior.
        num_refinement_steps: DDIM steps of the second network of a cascade.

    Raises ``ValueError`` for another solver or prediction type, or a value out of range.
    """

    scheduler: Any
    solver: str = "ddim"
    num_inference_steps: int = 50
    eta: float = 0.0
    num_refinement_steps: int = 4
    schedule: list[NoiseLevel] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, SOLVERS)
        check_whole("num_inference_steps", self.num_inference_steps, 1, 10**6)
        check_whole("num_refinement_steps", self.num_refinement_steps, 1, 10**6)
        check_number("eta", self.eta, 0, 1)
        check_choice("prediction_type", str(self.scheduler.prediction_type), PREDICTION_TYPES)
        alphas_cumprod = self.scheduler.alphas_cumprod
        if self.solver == "ddpm":
            schedule = solvers.even_schedule(alphas_cumprod, len(alphas_cumprod))
        elif self.solver == "dpm_solver":
            schedule = solvers.karras_schedule(alphas_cumprod, self.num_inference_steps)
        else:
            schedule = solvers.even_schedule(alphas_cumprod, self.num_inference_steps)
        object.__setattr__(self, "schedule", schedule)

    @property
    def refinement(self) -> Sampler:
        """Sampler of the second network of a cascade: a few steps of DDIM."""
        steps = self.num_refinement_steps
        return replace(self, solver="ddim", num_inference_steps=steps, eta=0.0)

    def __call__(self, predict: Predict, draw: DrawNoise) -> Tensor:
        """Clean images ``(B, 1, H, W)`` in [-1, 1], from the first noise of ``draw``; some solvers draw again."""
        x = draw()
        prediction_type = self.scheduler.prediction_type

        def denoise(x: Tensor, level: NoiseLevel) -> Tensor:
            count = x.shape[:1]
            timesteps = torch.full(count, level.timestep, device=x.device)
            output = predict(x, timesteps)
            return solvers.clean_image(output, x, level.alpha_bar, prediction_type)

        if self.solver == "ddpm":
            return solvers.ddpm(denoise, x, self.schedule, draw=draw)
        if self.solver == "dpm_solver":
            return solvers.dpm_solver(denoise, x, self.schedule)
        return solvers.ddim(denoise, x, self.schedule, eta=self.eta, draw=draw)
