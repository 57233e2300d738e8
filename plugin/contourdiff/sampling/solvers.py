# SPDX-License-Identifier: Apache-2.0
"""Schedules of noise levels and the solvers that follow them, from noise to the clean image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

from contourdiff.limits import check_choice, check_whole

PREDICTION_TYPES = ("epsilon", "v_prediction")
KARRAS_RHO = 7.0  # the value of Karras et al.: many small steps near the clean image


class NoiseLevel(NamedTuple):
    """A timestep, its ``alpha_bar``, the product of ``1 - beta``, and ``sigma = sqrt((1 - alpha_bar) / alpha_bar)``."""

    timestep: int
    alpha_bar: float
    sigma: float


Schedule = Sequence[NoiseLevel]
Denoise = Callable[[Tensor, NoiseLevel], Tensor]
"""``(x (B, 1, H, W), level) -> x0 (B, 1, H, W)``"""
DrawNoise = Callable[[], Tensor]


def even_schedule(alphas_cumprod: Tensor, num_inference_steps: int) -> list[NoiseLevel]:
    """Evenly spaced timesteps, descending from ``T - 1`` to 0; a single step is the noisiest.

    ``alphas_cumprod (T,)`` are the cumulative products of the training schedule; ``T`` steps take every timestep.
    Raises ``ValueError`` unless ``1 <= num_inference_steps <= T``.
    """
    total = len(alphas_cumprod)
    check_whole("num_inference_steps", num_inference_steps, 1, total)
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
    check_whole("num_inference_steps", num_inference_steps, 1, len(alphas_cumprod))
    alpha_bars = alphas_cumprod.detach().cpu().double().numpy()
    falls = (np.diff(alpha_bars) < 0).all()
    is_inside = alpha_bars[0] < 1 and alpha_bars[-1] > 0
    if not falls or not is_inside:
        raise ValueError(
            f"alphas_cumprod must fall strictly and lie between 0 and 1, got {alpha_bars[0]:g} to {alpha_bars[-1]:g}; "
            "sample a schedule that ends in pure noise with ddim"
        )
    levels = np.sqrt((1 - alpha_bars) / alpha_bars)
    noisiest, cleanest = levels[[-1, 0]] ** (1 / KARRAS_RHO)
    sigmas = np.linspace(noisiest, cleanest, num_inference_steps) ** KARRAS_RHO
    positions = np.arange(len(levels))
    log_sigmas = np.log(sigmas)
    timesteps = np.interp(log_sigmas, np.log(levels), positions).round()
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
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
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
) -> Tensor:
    """Denoise ``x`` with DDIM (Song et al., arXiv 2010.02502); the last step lands on the clean image.

    Args:
        denoise: predicts the clean image.
        x: standard normal noise, ``(B, 1, H, W)``.
        schedule: descending noise levels, one for each network call.
        eta: 0 is deterministic, 1 adds the noise of DDPM's posterior.
        draw: noise of one step, shaped like ``x``; called only if ``eta > 0``.

    Returns clean images, shaped like ``x``. Raises ``ValueError`` for ``eta`` below 0, or above 0 without ``draw``.
    """
    if eta < 0 or (eta > 0 and draw is None):
        raise ValueError(
            f"eta must be 0, or above 0 with noise to draw; got eta={eta}, draw={draw}"
        )
    for level, alpha_bar_prev in _with_previous(schedule):
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
    return x


def ddpm(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    *,
    draw: DrawNoise,
) -> Tensor:
    """Denoise ``x`` with the ancestral sampler, Algorithm 2 of the paper, with variance ``beta`` between two levels.

    Arguments as in [`ddim`][]; ``draw`` is called at every step but the last.
    """
    for step, (level, alpha_bar_prev) in enumerate(_with_previous(schedule)):
        alpha = level.alpha_bar / alpha_bar_prev
        beta = 1 - alpha
        _, epsilon = _clean_and_noise(denoise, x, level)
        drift = beta / (1 - level.alpha_bar) ** 0.5 * epsilon
        x = (x - drift) / alpha**0.5
        if step < len(schedule) - 1:
            x = x + beta**0.5 * draw()
    return x


def dpm_solver(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
) -> Tensor:
    """Denoise ``x`` with DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, Algorithm 2).

    Deterministic and of second order: a step extrapolates the clean image from the last two predictions; the first and
    the last step are of first order, that is DDIM's. With [`karras_schedule`][] the steps are those of diffusers'
    ``DPMSolverMultistepScheduler`` with ``use_karras_sigmas``, but for the clipping of the clean image. Arguments as in
    [`ddim`][]. The paper's sigma is ``sigma / sqrt(1 + sigma^2)`` here.
    """
    sigmas = [*(level.sigma for level in schedule), 0.0]
    x0_before = x
    for step, level in enumerate(schedule):
        sigma, sigma_next = sigmas[step : step + 2]
        # 1. predicted clean image
        x0 = denoise(x, level)
        # 2. extrapolated to the middle of the step: D_i, by h_i / (2 h_{i-1}) with h the growth of -log(sigma)
        target = x0
        if 0 < step < len(schedule) - 1:
            growth_before = math.log(sigmas[step - 1] / sigma)
            ahead = math.log(sigma / sigma_next) / growth_before / 2
            target = (1 + ahead) * x0 - ahead * x0_before
        # 3. the step, exact where the clean image is constant
        shrink = sigma_next / sigma
        signal = (1 + sigma**2) ** -0.5
        signal_next = (1 + sigma_next**2) ** -0.5
        keep = shrink * signal_next / signal
        pull = signal_next * (1 - shrink)
        x = keep * x + pull * target
        x0_before = x0
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
