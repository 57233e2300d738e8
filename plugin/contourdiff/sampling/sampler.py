# SPDX-License-Identifier: Apache-2.0
"""A solver with its schedule: from a network's predictions to clean images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from contourdiff.limits import check_number, check_whole
from contourdiff.sampling import solvers
from contourdiff.sampling.solvers import PREDICTION_TYPES, DrawNoise, NoiseLevel, OnStep

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
        num_inference_steps: network calls for a candidate.
        eta: DDIM's noise, 0 for none to 1 for that of DDPM's posterior.
        num_refinement_steps: DDIM steps of the second network of a cascade.

    Raises:
        ValueError: for an unknown solver or prediction type, a value out of range, or more steps than the training has.
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
        check_whole("num_inference_steps", self.num_inference_steps, 1, 10**6)
        check_whole("num_refinement_steps", self.num_refinement_steps, 1, 10**6)
        check_number("eta", self.eta, 0, 1)
        prediction_type = str(self.scheduler.prediction_type)
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}"
            )
        object.__setattr__(self, "schedule", self._schedule())

    @property
    def refinement(self) -> Sampler:
        """Sampler of the second network of a cascade, which has little left to decide: a few steps of DDIM."""
        steps = self.num_refinement_steps
        return replace(self, solver="ddim", num_inference_steps=steps, eta=0.0)

    def __call__(self, predict: Predict, draw: DrawNoise, on_step: OnStep | None = None) -> Tensor:
        """Clean images ``(B, 1, H, W)`` in [-1, 1], from the first noise that ``draw`` returns.

        A solver that adds noise draws again at each step; ``on_step`` receives each step's number and clean image.
        """
        x = draw()
        prediction_type = self.scheduler.prediction_type

        def denoise(x: Tensor, level: NoiseLevel) -> Tensor:
            timesteps = torch.full(x.shape[:1], level.timestep, device=x.device)
            output = predict(x, timesteps)
            return solvers.clean_image(output, x, level.alpha_bar, prediction_type)

        if self.solver == "ddpm":
            return solvers.ddpm(denoise, x, self.schedule, draw=draw, on_step=on_step)
        if self.solver == "dpm_solver":
            return solvers.dpm_solver(denoise, x, self.schedule, on_step=on_step)
        return solvers.ddim(denoise, x, self.schedule, eta=self.eta, draw=draw, on_step=on_step)

    def _schedule(self) -> list[NoiseLevel]:
        alphas_cumprod = self.scheduler.alphas_cumprod
        if self.solver == "ddpm":
            return solvers.even_schedule(alphas_cumprod, len(alphas_cumprod))
        if self.solver == "dpm_solver":
            return solvers.karras_schedule(alphas_cumprod, self.num_inference_steps)
        return solvers.even_schedule(alphas_cumprod, self.num_inference_steps)
