# SPDX-License-Identifier: Apache-2.0
"""Laws of the reverse process: its timesteps chain, and an ideal network leads to the distribution it knows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from contourdiff.noise import CandidateKey, NoiseStream
from contourdiff.solvers import ddim, ddpm, spaced_timesteps

TOTAL = 1000
ALPHA_BARS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, TOTAL, dtype=torch.float64), dim=0)
MEAN, STD = 0.3, 0.4
COUNT = 20_000


def drawer(seed: int, shape: tuple[int, ...] = (COUNT, 1, 1, 1)) -> Callable[[], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


def ideal(prediction_type: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The best possible network for images whose pixels are independent draws of N(MEAN, STD^2)."""

    def predict(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        alpha_bar = ALPHA_BARS[timesteps].reshape(-1, 1, 1, 1)
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x0 = MEAN + STD**2 * signal * (x - signal * MEAN) / (alpha_bar * STD**2 + 1 - alpha_bar)
        epsilon = (x - signal * x0) / noise
        return epsilon if prediction_type == "epsilon" else signal * epsilon - noise * x0

    return predict


@pytest.mark.parametrize(("total", "steps"), [(1000, 2), (1000, 10), (1000, 50), (1000, 999), (1000, 1000), (7, 5)])
def test_timesteps_descend_strictly_from_the_noisiest_to_zero(total: int, steps: int) -> None:
    timesteps = spaced_timesteps(total, steps)
    assert len(timesteps) == steps
    assert (timesteps[0], timesteps[-1]) == (total - 1, 0)
    gaps = [before - after for before, after in pairwise(timesteps)]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_every_number_of_steps_gives_distinct_timesteps() -> None:
    for steps in range(1, 101):
        timesteps = spaced_timesteps(100, steps)
        assert timesteps[0] == 99
        assert len(set(timesteps)) == steps


@pytest.mark.parametrize("steps", [0, -1, 11])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=rf"num_inference_steps must lie in 1\.\.10 .* got {steps}"):
        spaced_timesteps(10, steps)


@pytest.mark.parametrize("steps", [1, 2, 10, 19, 50])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_each_ddim_step_lands_where_the_next_begins(steps: int, prediction_type: str) -> None:
    shape = (3, 1, 4, 4)
    x0, epsilon = drawer(0, shape)().clamp(-1, 1), drawer(1, shape)()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_path(timestep: torch.Tensor) -> torch.Tensor:
        alpha_bar = ALPHA_BARS[timestep].reshape(-1, 1, 1, 1)
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * epsilon

    def predict(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        seen.append((x.clone(), timesteps.clone()))
        alpha_bar = ALPHA_BARS[timesteps].reshape(-1, 1, 1, 1)
        return epsilon if prediction_type == "epsilon" else alpha_bar.sqrt() * epsilon - (1 - alpha_bar).sqrt() * x0

    start = on_path(torch.full((3,), TOTAL - 1))
    result = ddim(
        predict,
        start,
        alphas_cumprod=ALPHA_BARS,
        num_inference_steps=steps,
        prediction_type=prediction_type,
        clip_sample=False,
    )
    assert [timesteps.tolist() for _, timesteps in seen] == [[t] * 3 for t in spaced_timesteps(TOTAL, steps)]
    for x, timesteps in seen:
        torch.testing.assert_close(x, on_path(timesteps), rtol=0, atol=1e-9)
    torch.testing.assert_close(result, x0, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("eta", "steps", "tolerance"), [(0.0, 50, 0.1), (1.0, 50, 0.15), (0.0, 400, 0.02), (1.0, 400, 0.025)]
)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_ddim_reaches_the_distribution_that_the_network_knows(
    eta: float, steps: int, tolerance: float, prediction_type: str
) -> None:
    """The error that few steps leave is DDIM's own, of first order: the tolerance falls with the number of steps."""
    start = drawer(2)()
    result = ddim(
        ideal(prediction_type),
        (start - start.mean()) / start.std(),
        alphas_cumprod=ALPHA_BARS,
        num_inference_steps=steps,
        prediction_type=prediction_type,
        eta=eta,
        draw=drawer(3),
        clip_sample=False,
    )
    assert float(result.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(result.std()) == pytest.approx(STD, rel=tolerance)


def test_twice_the_ddim_steps_halve_the_error() -> None:
    """DDIM with eta 0 is affine under this network: the starts -1 and 1 give mean and standard deviation exactly."""
    start = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    errors = []
    for steps in (25, 50, 100, 200):
        kwargs = {"alphas_cumprod": ALPHA_BARS, "num_inference_steps": steps, "clip_sample": False}
        low, high = ddim(ideal("epsilon"), start, **kwargs).flatten().tolist()
        errors.append(STD - (high - low) / 2)
        assert (low + high) / 2 == pytest.approx(MEAN, abs=1e-3)
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_ddpm_reaches_the_distribution_that_the_network_knows(prediction_type: str) -> None:
    result = ddpm(
        ideal(prediction_type),
        drawer(6)(),
        alphas_cumprod=ALPHA_BARS,
        draw=drawer(7),
        prediction_type=prediction_type,
        clip_sample=False,
    )
    assert float(result.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(result.std()) == pytest.approx(STD, rel=0.04)


@pytest.mark.parametrize("clip_sample", [False, True])
def test_epsilon_and_v_of_one_model_give_one_image(clip_sample: bool) -> None:
    shape = (4, 1, 6, 6)
    kwargs = {"alphas_cumprod": ALPHA_BARS, "clip_sample": clip_sample}
    for eta in (0.0, 0.5):
        by_type = [
            ddim(
                ideal(prediction_type),
                drawer(8, shape)(),
                num_inference_steps=20,
                prediction_type=prediction_type,
                eta=eta,
                draw=drawer(9, shape),
                **kwargs,
            )
            for prediction_type in ("epsilon", "v_prediction")
        ]
        torch.testing.assert_close(*by_type, rtol=0, atol=1e-8)
    by_type = [
        ddpm(ideal(kind), drawer(8, shape)(), draw=drawer(9, shape), prediction_type=kind, **kwargs)
        for kind in ("epsilon", "v_prediction")
    ]
    torch.testing.assert_close(*by_type, rtol=0, atol=1e-8)


def test_ddim_with_every_step_and_eta_one_is_ddpm_with_the_posterior_variance() -> None:
    """Both have the same mean: with zeros drawn they agree."""
    shape = (2, 1, 3, 3)
    zeros = torch.zeros(shape, dtype=torch.float64)
    start = drawer(10, shape)()
    by_ddim = ddim(
        ideal("epsilon"),
        start,
        alphas_cumprod=ALPHA_BARS,
        num_inference_steps=TOTAL,
        eta=1.0,
        draw=lambda: zeros,
        clip_sample=False,
    )
    by_ddpm = ddpm(ideal("epsilon"), start, alphas_cumprod=ALPHA_BARS, draw=lambda: zeros, clip_sample=False)
    torch.testing.assert_close(by_ddim, by_ddpm, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_clipped_samples_lie_in_the_range_of_training_images(eta: float) -> None:
    def wild(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return 50 * torch.sin(97 * x)

    shape = (2, 1, 8, 8)
    kwargs = {"alphas_cumprod": ALPHA_BARS, "draw": drawer(1, shape)}
    result = ddim(wild, drawer(0, shape)(), num_inference_steps=10, eta=eta, **kwargs)
    assert float(result.abs().max()) <= 1 + 1e-12
    assert float(ddpm(wild, drawer(0, shape)(), **kwargs).abs().max()) <= 1 + 1e-9


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_candidate_does_not_depend_on_its_batch(eta: float) -> None:
    keys = [CandidateKey(0, "case", index, 0, 0) for index in range(4)]

    def sample(batch: list[CandidateKey]) -> torch.Tensor:
        stream = NoiseStream(batch, (1, 4, 4))
        return ddim(
            lambda x, t: ideal("epsilon")(x.double(), t).float(),
            stream.draw(),
            alphas_cumprod=ALPHA_BARS,
            num_inference_steps=10,
            eta=eta,
            draw=stream.draw,
        )

    together = sample(keys)
    for index, key in enumerate(keys):
        torch.testing.assert_close(sample([key])[0], together[index], rtol=0, atol=1e-6)


def test_noise_is_drawn_only_where_it_is_used() -> None:
    shape, count = (1, 1, 2, 2), [0]

    def draw() -> torch.Tensor:
        count[0] += 1
        return torch.zeros(shape, dtype=torch.float64)

    start = drawer(0, shape)()
    for eta, expected in ((0.0, 0), (1.0, 9)):
        count[0] = 0
        ddim(ideal("epsilon"), start, alphas_cumprod=ALPHA_BARS, num_inference_steps=10, eta=eta, draw=draw)
        assert count[0] == expected
    count[0] = 0
    ddpm(ideal("epsilon"), start, alphas_cumprod=ALPHA_BARS, draw=draw)
    assert count[0] == TOTAL - 1


def test_samplers_leave_their_input_alone() -> None:
    shape = (1, 1, 2, 2)
    start = drawer(0, shape)()
    before = start.clone()
    ddim(ideal("epsilon"), start, alphas_cumprod=ALPHA_BARS, num_inference_steps=5, eta=1.0, draw=drawer(1, shape))
    ddpm(ideal("epsilon"), start, alphas_cumprod=ALPHA_BARS, draw=drawer(1, shape))
    assert torch.equal(start, before)


def test_impossible_settings_are_refused() -> None:
    x = torch.zeros(1, 1, 2, 2)
    kwargs = {"alphas_cumprod": ALPHA_BARS, "num_inference_steps": 5}
    with pytest.raises(ValueError, match=r"eta must be 0, or above 0 with noise to draw; got eta=0\.5, draw=None"):
        ddim(ideal("epsilon"), x, eta=0.5, **kwargs)
    with pytest.raises(ValueError, match=r"eta must be 0, or above 0 with noise to draw; got eta=-1"):
        ddim(ideal("epsilon"), x, eta=-1, draw=lambda: x, **kwargs)
    with pytest.raises(ValueError, match=r"prediction_type must be one of .*'epsilon', 'v_prediction'.* got 'sample'"):
        ddim(ideal("epsilon"), x, prediction_type="sample", **kwargs)
    with pytest.raises(ValueError, match="prediction_type must be one of"):
        ddpm(ideal("epsilon"), x, alphas_cumprod=ALPHA_BARS, draw=lambda: x, prediction_type="sample")
    with pytest.raises(ValueError, match="num_inference_steps must lie in"):
        ddim(ideal("epsilon"), x, alphas_cumprod=ALPHA_BARS, num_inference_steps=TOTAL + 1)


def test_known_alpha_bars_are_the_schedule_of_the_paper() -> None:
    assert float(ALPHA_BARS[-1]) == pytest.approx(np.prod(1 - np.linspace(1e-4, 0.02, TOTAL)), rel=1e-9)
