# SPDX-License-Identifier: Apache-2.0
"""Laws of the reverse process: its timesteps chain, and an ideal network leads to the distribution it knows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from contourdiff.sampling import solvers
from contourdiff.sampling.noise import CandidateKey, NoiseStream
from contourdiff.sampling.solvers import NoiseLevel, clean_image, even_schedule, karras_schedule

TOTAL = 1000
ALPHA_BARS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, TOTAL, dtype=torch.float64), dim=0)
MEAN, STD = 0.3, 0.4
COUNT = 20_000


Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def denoiser(predict: Predict, prediction_type: str, clip_sample: bool) -> solvers.Denoise:
    """Clean image from a network's prediction."""

    def denoise(x: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        timesteps = torch.full((len(x),), level.timestep)
        return clean_image(predict(x, timesteps), x, level.alpha_bar, prediction_type, clip_sample)

    return denoise


def adapted(
    solver: Callable[..., torch.Tensor], schedule: Callable[..., solvers.Schedule]
) -> Callable[..., Any]:
    """The solver of a network's predictions; without a number of steps it takes every training timestep."""

    def solve(
        predict: Predict,
        x: torch.Tensor,
        *,
        alphas_cumprod: torch.Tensor,
        num_inference_steps: int | None = None,
        prediction_type: str = "epsilon",
        clip_sample: bool = True,
        **settings: Any,
    ) -> torch.Tensor:
        steps = len(alphas_cumprod) if num_inference_steps is None else num_inference_steps
        levels = schedule(alphas_cumprod, steps)
        return solver(denoiser(predict, prediction_type, clip_sample), x, levels, **settings)

    return solve


ddim = adapted(solvers.ddim, even_schedule)
ddpm = adapted(solvers.ddpm, even_schedule)
dpm_solver = adapted(solvers.dpm_solver, karras_schedule)


def spaced_timesteps(total: int, steps: int) -> list[int]:
    return [level.timestep for level in even_schedule(torch.linspace(0.99, 0.01, total), steps)]


def karras_spacing(alphas_cumprod: torch.Tensor, steps: int) -> tuple[list[int], list[float]]:
    schedule = karras_schedule(alphas_cumprod, steps)
    return [level.timestep for level in schedule], [level.sigma for level in schedule]


def drawer(seed: int, shape: tuple[int, ...] = (COUNT, 1, 1, 1)) -> Callable[[], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


def ideal(
    prediction_type: str, alpha_bars: torch.Tensor = ALPHA_BARS
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The best possible network for images whose pixels are independent draws of N(MEAN, STD^2)."""

    def predict(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        alpha_bar = alpha_bars[timesteps].reshape(-1, 1, 1, 1)
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x0 = MEAN + STD**2 * signal * (x - signal * MEAN) / (alpha_bar * STD**2 + 1 - alpha_bar)
        epsilon = (x - signal * x0) / noise
        return epsilon if prediction_type == "epsilon" else signal * epsilon - noise * x0

    return predict


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
        return (
            epsilon
            if prediction_type == "epsilon"
            else alpha_bar.sqrt() * epsilon - (1 - alpha_bar).sqrt() * x0
        )

    start = on_path(torch.full((3,), TOTAL - 1))
    result = ddim(
        predict,
        start,
        alphas_cumprod=ALPHA_BARS,
        num_inference_steps=steps,
        prediction_type=prediction_type,
        clip_sample=False,
    )
    assert [timesteps.tolist() for _, timesteps in seen] == [
        [t] * 3 for t in spaced_timesteps(TOTAL, steps)
    ]
    for x, timesteps in seen:
        torch.testing.assert_close(x, on_path(timesteps), rtol=0, atol=1e-9)
    torch.testing.assert_close(result, x0, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("eta", "steps", "tolerance"),
    [(0.0, 50, 0.1), (1.0, 50, 0.15), (0.0, 400, 0.02), (1.0, 400, 0.025)],
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


def nonlinear(prediction_type: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A network of one fixed convolution that knows the time; outputs of order one at every timestep."""
    kernel = 0.4 * torch.randn((1, 1, 3, 3), generator=torch.Generator().manual_seed(0))

    def predict(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        alpha_bar = ALPHA_BARS.float()[timesteps].reshape(-1, 1, 1, 1)
        time = timesteps.reshape(-1, 1, 1, 1) / TOTAL
        v = (
            torch.tanh(torch.nn.functional.conv2d(x, kernel, padding=1) + torch.sin(7 * time))
            - 0.3 * time * x
        )
        return (
            v
            if prediction_type == "v_prediction"
            else alpha_bar.sqrt() * v + (1 - alpha_bar).sqrt() * x
        )

    return predict


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 14, 15, 20, 25, 100])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers, for NumPy 2
def test_dpm_solver_is_that_of_diffusers(steps: int, prediction_type: str) -> None:
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=TOTAL,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        algorithm_type="dpmsolver++",
        solver_order=2,
        use_karras_sigmas=True,
        prediction_type=prediction_type,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    timesteps, sigmas = karras_spacing(scheduler.alphas_cumprod, steps)
    assert timesteps == scheduler.timesteps.tolist()
    assert sigmas == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-6)
    start = drawer(0, (3, 1, 16, 16))().float()
    expected, predict = start, nonlinear(prediction_type)
    for timestep in scheduler.timesteps:
        expected = scheduler.step(
            predict(expected, timestep.expand(3)), timestep, expected
        ).prev_sample
    kwargs = {
        "num_inference_steps": steps,
        "prediction_type": prediction_type,
        "clip_sample": False,
    }
    result = dpm_solver(predict, start, alphas_cumprod=scheduler.alphas_cumprod, **kwargs)
    # epsilon at the noisiest timestep loses two digits of float32, which three steps or fewer do not forget
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 if steps >= 10 else 1e-4)


def test_dpm_solver_is_of_second_order_and_needs_fewer_steps_than_ddim() -> None:
    """Affine under this network, as DDIM is: see above."""
    start = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)

    def error(solver: Callable[..., torch.Tensor], steps: int) -> float:
        kwargs = {"alphas_cumprod": ALPHA_BARS, "num_inference_steps": steps, "clip_sample": False}
        low, high = solver(ideal("epsilon"), start, **kwargs).flatten().tolist()
        assert (low + high) / 2 == pytest.approx(MEAN, abs=2e-3)
        return abs(STD - (high - low) / 2)

    assert error(dpm_solver, 20) < error(ddim, 50) < 0.03
    assert error(dpm_solver, 50) < error(ddim, 400)
    for coarse, fine in pairwise(error(dpm_solver, steps) for steps in (25, 50, 100)):
        assert coarse / fine > 4


@pytest.mark.slow
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
@pytest.mark.parametrize("solver", ["ddim", "ddim with noise", "ddpm", "dpm_solver"])
def test_epsilon_and_v_of_one_model_give_one_image(solver: str, clip_sample: bool) -> None:
    shape = (4, 1, 6, 6)
    alpha_bars = ALPHA_BARS.clone()
    if (
        solver == "dpm_solver"
    ):  # its levels lie up to half a timestep off: the model knows them as they are
        timesteps, sigmas = karras_spacing(ALPHA_BARS, 20)
        alpha_bars[timesteps] = 1 / (1 + torch.tensor(sigmas, dtype=torch.float64) ** 2)

    def sample(kind: str) -> torch.Tensor:
        kwargs = {"alphas_cumprod": ALPHA_BARS, "prediction_type": kind, "clip_sample": clip_sample}
        predict, start, draw = ideal(kind, alpha_bars), drawer(8, shape)(), drawer(9, shape)
        if solver == "ddpm":
            return ddpm(predict, start, draw=draw, **kwargs)
        if solver == "dpm_solver":
            return dpm_solver(predict, start, num_inference_steps=20, **kwargs)
        return ddim(
            predict,
            start,
            num_inference_steps=20,
            eta=0.5 * (solver != "ddim"),
            draw=draw,
            **kwargs,
        )

    torch.testing.assert_close(sample("epsilon"), sample("v_prediction"), rtol=0, atol=1e-8)


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
    by_ddpm = ddpm(
        ideal("epsilon"), start, alphas_cumprod=ALPHA_BARS, draw=lambda: zeros, clip_sample=False
    )
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
    result = dpm_solver(wild, drawer(0, shape)(), alphas_cumprod=ALPHA_BARS, num_inference_steps=10)
    assert float(result.abs().max()) <= 1


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
        ddim(
            ideal("epsilon"),
            start,
            alphas_cumprod=ALPHA_BARS,
            num_inference_steps=10,
            eta=eta,
            draw=draw,
        )
        assert count[0] == expected
    count[0] = 0
    ddpm(ideal("epsilon"), start, alphas_cumprod=ALPHA_BARS, draw=draw)
    assert count[0] == TOTAL - 1


def test_samplers_leave_their_input_alone() -> None:
    shape = (1, 1, 2, 2)
    start = drawer(0, shape)()
    before = start.clone()
    ddim(
        ideal("epsilon"),
        start,
        alphas_cumprod=ALPHA_BARS,
        num_inference_steps=5,
        eta=1.0,
        draw=drawer(1, shape),
    )
    ddpm(ideal("epsilon"), start, alphas_cumprod=ALPHA_BARS, draw=drawer(1, shape))
    dpm_solver(ideal("epsilon"), start, alphas_cumprod=ALPHA_BARS, num_inference_steps=5)
    assert torch.equal(start, before)


def test_impossible_settings_are_refused() -> None:
    x = torch.zeros(1, 1, 2, 2)
    kwargs = {"alphas_cumprod": ALPHA_BARS, "num_inference_steps": 5}
    with pytest.raises(
        ValueError, match=r"eta must be 0, or above 0 with noise to draw; got eta=0\.5, draw=None"
    ):
        ddim(ideal("epsilon"), x, eta=0.5, **kwargs)
    with pytest.raises(
        ValueError, match=r"eta must be 0, or above 0 with noise to draw; got eta=-1"
    ):
        ddim(ideal("epsilon"), x, eta=-1, draw=lambda: x, **kwargs)
    with pytest.raises(
        ValueError,
        match=r"prediction_type must be one of .*'epsilon', 'v_prediction'.* got 'sample'",
    ):
        ddim(ideal("epsilon"), x, prediction_type="sample", **kwargs)
    with pytest.raises(ValueError, match="prediction_type must be one of"):
        ddpm(
            ideal("epsilon"), x, alphas_cumprod=ALPHA_BARS, draw=lambda: x, prediction_type="sample"
        )
    with pytest.raises(ValueError, match=r"num_inference_steps to be .* from 1 to"):
        ddim(ideal("epsilon"), x, alphas_cumprod=ALPHA_BARS, num_inference_steps=TOTAL + 1)
    for steps in (-1, 0, TOTAL + 1):
        with pytest.raises(
            ValueError, match=rf"num_inference_steps to be .* from 1 to {TOTAL}, got {steps}"
        ):
            dpm_solver(ideal("epsilon"), x, alphas_cumprod=ALPHA_BARS, num_inference_steps=steps)
    with pytest.raises(ValueError, match="prediction_type must be one of"):
        dpm_solver(ideal("epsilon"), x, prediction_type="sample", **kwargs)
    for schedule in ([0.9, 0.5, 0.0], [1.0, 0.5, 0.1], [0.9, 0.9, 0.1], [0.1, 0.5, 0.9]):
        with pytest.raises(
            ValueError,
            match=r"alphas_cumprod must fall strictly and lie between 0 and 1, got .* ddim",
        ):
            dpm_solver(
                ideal("epsilon"), x, alphas_cumprod=torch.tensor(schedule), num_inference_steps=2
            )


@pytest.mark.parametrize("solver", [solvers.ddim, solvers.dpm_solver])
@pytest.mark.parametrize("schedule", [even_schedule, karras_schedule])
def test_any_solver_takes_any_schedule(
    solver: Callable[..., torch.Tensor], schedule: Callable[..., Any]
) -> None:
    """Where the network knows the clean image, every one ends there, by one call for each level."""
    clean = torch.full((2, 1, 3, 3), 0.25)
    levels = schedule(ALPHA_BARS, 7)
    called = []

    def denoise(x: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        called.append(level)
        return clean

    result = solver(denoise, torch.randn(2, 1, 3, 3), levels)
    torch.testing.assert_close(result, clean)
    assert called == levels
    assert [level.sigma for level in levels] == pytest.approx(
        [((1 - level.alpha_bar) / level.alpha_bar) ** 0.5 for level in levels]
    )
