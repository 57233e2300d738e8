# SPDX-License-Identifier: Apache-2.0
"""What a training batch holds, and what the network learns from it."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from contourdiff.training import ContourDiffusionInferer, ContourPrepareBatch
from helpers.inferers import SCHEDULER


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_training_target_recovers_the_noise(prediction_type: str) -> None:
    scheduler = DDPMScheduler(num_train_timesteps=1000, prediction_type=prediction_type)
    batch = {"image": torch.rand(5, 1, 8, 8) * 2 - 1, "contour": torch.ones(5, 1, 8, 8)}
    images, target, _, extra = ContourPrepareBatch(scheduler)(batch)
    noisy = scheduler.add_noise(images, extra["noise"], extra["timesteps"])
    alpha_bar = scheduler.alphas_cumprod[extra["timesteps"]][:, None, None, None]
    if prediction_type == "v_prediction":
        recovered = alpha_bar.sqrt() * target + (1 - alpha_bar).sqrt() * noisy
    else:
        recovered = target
    torch.testing.assert_close(recovered, extra["noise"], atol=1e-4, rtol=1e-4)
    seen = ContourDiffusionInferer(scheduler)(images, lambda x, timesteps, context: x, **extra)
    torch.testing.assert_close(seen, torch.cat([noisy, batch["contour"]], 1))


def test_a_fixed_seed_gives_validation_the_same_noise_and_spread_timesteps() -> None:
    prepare = ContourPrepareBatch(SCHEDULER, fixed_seed=3)
    batch = {"image": torch.rand(4, 1, 8, 8), "contour": torch.ones(4, 1, 8, 8)}
    first, second = prepare(batch)[3], prepare(batch)[3]
    assert torch.equal(first["noise"], second["noise"])
    assert first["timesteps"].tolist() == second["timesteps"].tolist() == [125, 375, 625, 875]


def test_more_timestep_draws_put_weight_on_high_noise() -> None:
    torch.manual_seed(0)
    images = torch.zeros(4000, 1, 1, 1)
    means = [
        ContourPrepareBatch(SCHEDULER, timestep_draws=n).get_timesteps(images).float().mean()
        for n in (1, 2)
    ]
    assert means[0] == pytest.approx(499.5, abs=25)
    assert means[1] == pytest.approx(666, abs=25)
