# SPDX-License-Identifier: Apache-2.0
"""Schedules of noise levels and the solvers that follow them, from noise to the clean image.

A solver calls ``denoise(x, level)``, which predicts the clean image ``x0`` from a noisy one. Any solver follows any
schedule. ``alpha_bar`` is the cumulative product of ``1 - beta``, the paper's alpha with a bar.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction")
KARRAS_RHO = 7.0  # the value of Karras et al.: many small steps near the clean image


class NoiseLevel(NamedTuple):
    """A level of noise: the training timestep, ``alpha_bar``, and ``sigma = sqrt((1 - alpha_bar) / alpha_bar)``."""

    timestep: int
    alpha_bar: float
    sigma: float


Schedule = Sequence[NoiseLevel]
Denoise = Callable[[Tensor, NoiseLevel], Tensor]
"""``(x (B, 1, H, W), level) -> x0 (B, 1, H, W)``"""
DrawNoise = Callable[[], Tensor]
OnStep = Callable[[int, Tensor], None]
"""Called after each step with its number and the predicted clean image."""


def even_schedule(alphas_cumprod: Tensor, num_inference_steps: int) -> list[NoiseLevel]:
    """Evenly spaced timesteps, descending from ``T - 1`` to 0; a single step is the noisiest.

    ``alphas_cumprod (T,)`` are the cumulative products of the training schedule; ``T`` steps take every timestep.
    Raises ``ValueError`` unless ``1 <= num_inference_steps <= T``.
    """
    total = len(alphas_cumprod)
    _check_steps(total, num_inference_steps)
    schedule = []
    for place in np.linspace(total - 1, 0, num_inference_steps):
        timestep = round(place)
        alpha_bar = float(alphas_cumprod[timestep])
        sigma = math.inf
        if alpha_bar > 0:
            sigma = math.sqrt((1 - alpha_bar) / alpha_bar)
        schedule.append(NoiseLevel(timestep, alpha_bar, sigma))
    return schedule


def karras_schedule(alphas_cumprod: Tensor, num_inference_steps: int) -> list[NoiseLevel]:
    """Noise levels that are dense near the clean image (Karras et al., arXiv 2206.00364, eq. 5).

    ``sigma`` falls from that of the last training timestep to that of the first. The timestep of a level is the nearest
    on the logarithm of the training levels; with many steps (79 or more of 1000 for beta from 1e-4 to 0.02) low levels
    share one, as in diffusers. Raises ``ValueError`` as [`even_schedule`][], or unless ``alphas_cumprod (T,)`` fall
    strictly between 1 and 0.
    """
    _check_steps(len(alphas_cumprod), num_inference_steps)
    alpha_bars = alphas_cumprod.detach().cpu().double().numpy()
    falls = (np.diff(alpha_bars) < 0).all()
    if not (falls and alpha_bars[0] < 1 and alpha_bars[-1] > 0):
        raise ValueError(
            f"alphas_cumprod must fall strictly and lie between 0 and 1, got {alpha_bars[0]:g} to {alpha_bars[-1]:g}; "
            "sample a schedule that ends in pure noise with ddim"
        )
    levels = np.sqrt((1 - alpha_bars) / alpha_bars)
    noisiest, cleanest = levels[[-1, 0]] ** (1 / KARRAS_RHO)
    sigmas = np.linspace(noisiest, cleanest, num_inference_steps) ** KARRAS_RHO
    positions = np.arange(len(levels))
    timesteps = np.interp(np.log(sigmas), np.log(levels), positions).round()
    schedule = []
    for timestep, sigma in zip(timesteps, sigmas.tolist(), strict=True):
        alpha_bar = 1 / (1 + sigma**2)
        schedule.append(NoiseLevel(int(timestep), alpha_bar, sigma))
    return schedule


def clean_image(
    output: Tensor,
    x: Tensor,
    alpha_bar: float,
    prediction_type: str,
    clip: bool = True,
) -> Tensor:
    """Clean image that a network's output implies, for ``x = sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * epsilon``.

    ``output`` is ``epsilon``, or with ``"v_prediction"`` the velocity ``sqrt(alpha_bar) * epsilon - sqrt(1 - alpha_bar)
    * x0`` (Salimans and Ho, arXiv 2202.00512). ``clip`` limits the result to [-1, 1], the range of training images.
    Raises ``ValueError`` for another prediction type.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}"
        )
    signal = alpha_bar**0.5
    noise = (1 - alpha_bar) ** 0.5
    remainder = noise * output
    x0 = (x - remainder) / signal if prediction_type == "epsilon" else signal * x - remainder
    return x0.clamp(-1, 1) if clip else x0


def ddim(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    draw: DrawNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise ``x`` with DDIM (Song et al., arXiv 2010.02502).

    Each step lands on the next level of the schedule; the last lands on the clean image.

    Args:
        denoise: predicts the clean image.
        x: standard normal noise, ``(B, 1, H, W)``.
        schedule: descending noise levels, one for each network call.
        eta: 0 is deterministic, 1 adds the noise of DDPM's posterior.
        draw: noise of one step, shaped like ``x``; called only if ``eta > 0``.
        on_step: receives the number of each step and its predicted clean image.

    Returns:
        Clean images, shaped like ``x``.

    Raises:
        ValueError: for ``eta`` below 0, or above 0 without ``draw``.
    """
    if eta < 0 or (eta > 0 and draw is None):
        raise ValueError(
            f"eta must be 0, or above 0 with noise to draw; got eta={eta}, draw={draw}"
        )
    for step, (level, alpha_bar_prev) in enumerate(_with_previous(schedule)):
        # 1. predicted clean image, eq. (9), and the noise that goes with it
        x0, epsilon = _clean_and_noise(denoise, x, level)
        # 2. noise to add, eq. (16)
        shrink = (1 - alpha_bar_prev) / (1 - level.alpha_bar)
        sigma = eta * (shrink * (1 - level.alpha_bar / alpha_bar_prev)) ** 0.5
        # 3. direction to x_t and the step, eq. (12)
        direction = max(1 - alpha_bar_prev - sigma**2, 0.0) ** 0.5 * epsilon
        x = alpha_bar_prev**0.5 * x0 + direction
        if sigma > 0 and draw is not None:
            x = x + sigma * draw()
        if on_step is not None:
            on_step(step, x0)
    return x


def ddpm(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    *,
    draw: DrawNoise,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise ``x`` with the ancestral sampler, Algorithm 2 of the paper, with variance ``beta`` between two levels.

    Arguments as in [`ddim`][]; the paper's schedule is every training timestep. ``draw`` is called at every step but
    the last.
    """
    for step, (level, alpha_bar_prev) in enumerate(_with_previous(schedule)):
        alpha = level.alpha_bar / alpha_bar_prev
        beta = 1 - alpha
        x0, epsilon = _clean_and_noise(denoise, x, level)
        drift = beta / (1 - level.alpha_bar) ** 0.5 * epsilon
        x = (x - drift) / alpha**0.5
        if step < len(schedule) - 1:
            x = x + beta**0.5 * draw()
        if on_step is not None:
            on_step(step, x0)
    return x


def dpm_solver(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise ``x`` with DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, Algorithm 2).

    Deterministic and of second order: a step extrapolates the clean image from the last two predictions. The first
    step, which has one prediction, and the last, which goes to noise level 0, are of first order, that is DDIM's. With
    [`karras_schedule`][] the steps are those of diffusers' ``DPMSolverMultistepScheduler`` with
    ``use_karras_sigmas``, but for the clipping of the clean image. Arguments as in [`ddim`][].
    """
    weights = _multistep_weights(schedule)
    x0_before = None
    for step, level in enumerate(schedule):
        keep, pull, ahead = weights[step]
        # 1. predicted clean image
        x0 = denoise(x, level)
        # 2. extrapolated to the middle of the step: D_i of Algorithm 2
        target = x0
        if x0_before is not None and ahead != 0:
            target = (1 + ahead) * x0 - ahead * x0_before
        # 3. the step, exact where the clean image is constant
        x = keep * x + pull * target
        x0_before = x0
        if on_step is not None:
            on_step(step, x0)
    return x


def _with_previous(schedule: Schedule) -> Iterator[tuple[NoiseLevel, float]]:
    """Each level with the ``alpha_bar`` of the next one in the schedule, 1 after the last."""
    for level, following in pairwise(schedule):
        yield level, following.alpha_bar
    yield schedule[-1], 1.0


def _clean_and_noise(denoise: Denoise, x: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
    x0 = denoise(x, level)
    signal = level.alpha_bar**0.5
    noise = (1 - level.alpha_bar) ** 0.5
    return x0, (x - signal * x0) / noise


def _multistep_weights(schedule: Schedule) -> list[tuple[float, float, float]]:
    """Weights of ``x``, of the clean image and of its last change in each step (Lu et al., Algorithm 2).

    With ``h_i`` the growth of ``-log(sigma)`` in step i: ``sigma_t / sigma_s`` of the paper, whose sigma is ``sigma /
    sqrt(1 + sigma^2)`` here, ``-alpha_t (exp(-h_i) - 1)``, and ``h_i / (2 h_{i-1})``, 0 in the first step and the last.
    """
    sigmas = [level.sigma for level in schedule]
    weights = []
    for step, (sigma, sigma_next) in enumerate(pairwise([*sigmas, 0.0])):
        shrink = sigma_next / sigma
        signal = (1 + sigma**2) ** -0.5
        signal_next = (1 + sigma_next**2) ** -0.5
        ahead = 0.0
        if 0 < step < len(sigmas) - 1:
            growth_before = math.log(sigmas[step - 1] / sigma)
            ahead = math.log(sigma / sigma_next) / growth_before / 2
        keep = shrink * signal_next / signal
        pull = signal_next * (1 - shrink)
        weights.append((keep, pull, ahead))
    return weights


def _check_steps(num_train_timesteps: int, num_inference_steps: int) -> None:
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps must lie in 1..{num_train_timesteps} (the training timesteps), "
            f"got {num_inference_steps}"
        )
