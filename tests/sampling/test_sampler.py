# SPDX-License-Identifier: Apache-2.0
"""The sampler: a solver on its schedule, whatever the network predicts."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from contourdiff.sampling import Sampler
from contourdiff.sampling.solvers import (
    NoiseLevel,
    clean_image,
    ddim,
    ddpm,
    dpm_solver,
    even_schedule,
    karras_schedule,
)

SHAPE = (2, 1, 4, 4)
STEPS = 5


def scheduler(prediction_type: str = "v_prediction", total: int = 40) -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=total, prediction_type=prediction_type)


def predict(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x + timesteps.view(-1, 1, 1, 1) / 40)


def noise(seed: int = 0):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm_solver"])
def test_a_sampler_is_its_solver_on_its_schedule(solver: str, prediction_type: str) -> None:
    given = scheduler(prediction_type)
    alphas_cumprod = given.alphas_cumprod

    def denoise(x: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        output = predict(x, torch.full((len(x),), level.timestep))
        return clean_image(output, x, level.alpha_bar, prediction_type)

    draw = noise()
    x = draw()
    expected = {
        "ddim": lambda: ddim(denoise, x, even_schedule(alphas_cumprod, STEPS), eta=0.5, draw=draw),
        "ddpm": lambda: ddpm(denoise, x, even_schedule(alphas_cumprod, 40), draw=draw),
        "dpm_solver": lambda: dpm_solver(denoise, x, karras_schedule(alphas_cumprod, STEPS)),
    }[solver]()
    sampler = Sampler(given, solver, STEPS, eta=0.5)
    assert torch.equal(sampler(predict, noise()), expected)
    assert len(sampler.schedule) == (40 if solver == "ddpm" else STEPS)


def test_a_sampler_does_not_change() -> None:
    sampler = Sampler(scheduler(), num_inference_steps=STEPS)
    with pytest.raises(FrozenInstanceError):
        sampler.num_inference_steps = 3  # type: ignore[misc]
    assert torch.equal(sampler(predict, noise()), sampler(predict, noise()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "euler"}, r"solver must be one of .* got 'euler'"),
        ({"eta": -0.1}, r"expected eta to be a number from 0 to 1, got -0\.1"),
        ({"num_refinement_steps": 1.5}, r"expected num_refinement_steps to be a whole number"),
        ({"num_inference_steps": 41}, r"num_inference_steps to be .* from 1 to 40, got 41"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(**{"scheduler": scheduler(), "num_inference_steps": STEPS, **settings})
    with pytest.raises(ValueError, match=r"prediction_type must be one of .* got 'sample'"):
        Sampler(scheduler("sample"))
