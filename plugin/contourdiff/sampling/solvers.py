# SPDX-License-Identifier: Apache-2.0
"""The reverse process: pure functions from noise to image, given what the network predicts.

Names: ``alpha_bar`` is the cumulative product of ``1 - beta`` (the paper's alpha with a bar), ``x0`` the clean image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Draw = Callable[[], torch.Tensor]

PREDICTION_TYPES = ("epsilon", "v_prediction")
KARRAS_RHO = 7.0  # the value of Karras et al.: many small steps near the clean image


def spaced_timesteps(num_train_timesteps: int, num_inference_steps: int) -> list[int]:
    """Descending timesteps from ``num_train_timesteps - 1`` to 0, evenly spaced; one step starts at the noisiest.

    Raises:
        ValueError: unless ``1 <= num_inference_steps <= num_train_timesteps``.
    """
    _check_steps(num_train_timesteps, num_inference_steps)
    return [round(t) for t in np.linspace(num_train_timesteps - 1, 0, num_inference_steps)]


def karras_spacing(alphas_cumprod: torch.Tensor, num_inference_steps: int) -> tuple[list[int], list[float]]:
    """Timesteps and noise levels that are dense near the clean image (Karras et al., arXiv 2206.00364, eq. 5).

    A noise level is ``sigma = sqrt((1 - alpha_bar) / alpha_bar)``, noise over signal. Levels fall from that of the last
    training timestep to that of the first; one step starts at the noisiest. A timestep is the nearest to its level on
    the logarithm of the training levels, up to half a timestep off. With many steps (79 or more for 1000 timesteps and
    beta from 1e-4 to 0.02) low levels share a timestep, as in diffusers; the levels themselves always differ.

    Args:
        alphas_cumprod: ``(T,)`` cumulative products of the training schedule, falling, between 0 and 1.
        num_inference_steps: number of levels, at most ``T``.

    Returns:
        Timesteps and levels, ``num_inference_steps`` of each, descending.

    Raises:
        ValueError: unless ``1 <= num_inference_steps <= T``, or for a schedule that reaches 0 or 1 or does not fall.
    """
    _check_steps(len(alphas_cumprod), num_inference_steps)
    alpha_bars = alphas_cumprod.detach().cpu().double().numpy()
    if not (alpha_bars[0] < 1 and alpha_bars[-1] > 0 and (np.diff(alpha_bars) < 0).all()):
        raise ValueError(
            f"alphas_cumprod must fall strictly and lie between 0 and 1, got {alpha_bars[0]:g} to {alpha_bars[-1]:g}; "
            "sample a schedule that ends in pure noise with ddim"
        )
    levels = np.sqrt((1 - alpha_bars) / alpha_bars)
    ends = levels[[-1, 0]] ** (1 / KARRAS_RHO)
    sigmas = np.linspace(ends[0], ends[1], num_inference_steps) ** KARRAS_RHO
    timesteps = np.interp(np.log(sigmas), np.log(levels), np.arange(len(levels))).round()
    return [int(t) for t in timesteps], sigmas.tolist()


def ddim(
    predict: Predict,
    x: torch.Tensor,
    *,
    alphas_cumprod: torch.Tensor,
    num_inference_steps: int,
    prediction_type: str = "epsilon",
    eta: float = 0.0,
    draw: Draw | None = None,
    clip_sample: bool = True,
) -> torch.Tensor:
    """Denoise ``x`` with DDIM (Song et al., arXiv 2010.02502).

    The previous timestep of a step is the timestep of the next one, so that each step lands where the next begins.

    Args:
        predict: ``(x (B, 1, H, W), timesteps (B,) long) -> (B, 1, H, W)``, the network given its contours.
        x: standard normal noise, ``(B, 1, H, W)``.
        alphas_cumprod: ``(T,)`` cumulative products of the training schedule.
        num_inference_steps: network calls, at most ``T``.
        prediction_type: what ``predict`` returns, ``"epsilon"`` or ``"v_prediction"``.
        eta: 0 is deterministic, 1 adds the noise of DDPM's posterior.
        draw: noise for one step, shaped like ``x``; asked for only if ``eta > 0``.
        clip_sample: clip each predicted clean image to [-1, 1], the range of training images.

    Returns:
        Clean images in [-1, 1], shaped like ``x``.

    Raises:
        ValueError: for an unknown ``prediction_type``, a negative ``eta``, or ``eta > 0`` without ``draw``.
    """
    _check_prediction_type(prediction_type)
    if eta < 0 or (eta > 0 and draw is None):
        raise ValueError(f"eta must be 0, or above 0 with noise to draw; got eta={eta}, draw={draw}")
    timesteps = spaced_timesteps(len(alphas_cumprod), num_inference_steps)
    alpha_bars = [float(alphas_cumprod[t]) for t in timesteps] + [1.0]
    batch_timesteps = _batched(timesteps, x)
    for step, (alpha_bar, alpha_bar_prev) in enumerate(pairwise(alpha_bars)):
        output = predict(x, batch_timesteps[step])
        # 1. predicted clean image, eq. (9), and the noise that goes with it
        x0, epsilon = _split(output, x, alpha_bar, prediction_type, clip_sample)
        # 2. noise to add, eq. (16)
        sigma = eta * ((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)) ** 0.5
        # 3. direction to x_t and the step, eq. (12)
        x = alpha_bar_prev**0.5 * x0 + max(1 - alpha_bar_prev - sigma**2, 0.0) ** 0.5 * epsilon
        if sigma > 0 and draw is not None:
            x = x + sigma * draw()
    return x


def ddpm(
    predict: Predict,
    x: torch.Tensor,
    *,
    alphas_cumprod: torch.Tensor,
    draw: Draw,
    prediction_type: str = "epsilon",
    clip_sample: bool = True,
) -> torch.Tensor:
    """Denoise ``x`` with the ancestral sampler, Algorithm 2 of the paper: every training timestep, variance beta_t.

    Arguments as in :func:`ddim`; ``draw`` is asked for at every timestep but the last.
    """
    _check_prediction_type(prediction_type)
    total = len(alphas_cumprod)
    alpha_bars = [1.0] + [float(a) for a in alphas_cumprod]
    batch_timesteps = _batched(list(range(total)), x)
    for t in reversed(range(total)):
        alpha_bar, alpha_bar_prev = alpha_bars[t + 1], alpha_bars[t]
        alpha, beta = alpha_bar / alpha_bar_prev, 1 - alpha_bar / alpha_bar_prev
        _, epsilon = _split(predict(x, batch_timesteps[t]), x, alpha_bar, prediction_type, clip_sample)
        x = (x - beta / (1 - alpha_bar) ** 0.5 * epsilon) / alpha**0.5
        if t > 0:
            x = x + beta**0.5 * draw()
    return x


def dpm_solver(
    predict: Predict,
    x: torch.Tensor,
    *,
    alphas_cumprod: torch.Tensor,
    num_inference_steps: int,
    prediction_type: str = "epsilon",
    clip_sample: bool = True,
) -> torch.Tensor:
    """Denoise ``x`` with DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, Algorithm 2), spaced as Karras et al.

    Deterministic and of second order: a step extrapolates the clean image from the last two predictions. The first
    step, which has one prediction, and the last, which goes to noise level 0, are of first order, that is DDIM's. The
    steps are those of diffusers' ``DPMSolverMultistepScheduler`` with ``use_karras_sigmas``; the clipping is ours.

    Args:
        predict: ``(x (B, 1, H, W), timesteps (B,) long) -> (B, 1, H, W)``, the network given its contours.
        x: standard normal noise, ``(B, 1, H, W)``.
        alphas_cumprod: ``(T,)`` cumulative products of the training schedule, falling, between 0 and 1.
        num_inference_steps: network calls, at most ``T``; see :func:`karras_spacing`.
        prediction_type: what ``predict`` returns, ``"epsilon"`` or ``"v_prediction"``.
        clip_sample: clip each predicted clean image to [-1, 1], the range of training images.

    Returns:
        Clean images, shaped like ``x``; in [-1, 1] if ``clip_sample``.

    Raises:
        ValueError: for an unknown ``prediction_type``, or a number of steps or a schedule that cannot be spaced.
    """
    _check_prediction_type(prediction_type)
    timesteps, sigmas = karras_spacing(alphas_cumprod, num_inference_steps)
    batch_timesteps = _batched(timesteps, x)
    x0_before = None
    for step, (keep, pull, ahead) in enumerate(_multistep_weights(sigmas)):
        output = predict(x, batch_timesteps[step])
        # 1. predicted clean image
        x0 = _clean(output, x, 1 / (1 + sigmas[step] ** 2), prediction_type, clip_sample)
        # 2. extrapolated to the middle of the step: D_i of Algorithm 2
        target = x0 if x0_before is None or ahead == 0 else (1 + ahead) * x0 - ahead * x0_before
        # 3. the step, exact where the clean image is constant
        x = keep * x + pull * target
        x0_before = x0
    return x


def _multistep_weights(sigmas: list[float]) -> list[tuple[float, float, float]]:
    """Weights of each step: of ``x``, of the clean image, of its last change (Lu et al., Algorithm 2).

    With ``lambda = -log(sigma)`` and ``h_i`` its growth in step i they are ``sigma_t / sigma_s`` of the paper, whose
    sigma is ``sigma / sqrt(1 + sigma^2)`` here, then ``-alpha_t (exp(-h_i) - 1)`` and ``1 / (2 r_i)``,
    ``r_i = h_{i-1} / h_i``. The last change counts nothing in the first step and in the last.
    """
    weights = []
    for step, (sigma, sigma_next) in enumerate(pairwise([*sigmas, 0.0])):
        shrink, signal, signal_next = sigma_next / sigma, (1 + sigma**2) ** -0.5, (1 + sigma_next**2) ** -0.5
        ahead = 0.0
        if 0 < step < len(sigmas) - 1:
            ahead = math.log(sigma / sigma_next) / math.log(sigmas[step - 1] / sigma) / 2
        weights.append((shrink * signal_next / signal, signal_next * (1 - shrink), ahead))
    return weights


def _clean(
    output: torch.Tensor, x: torch.Tensor, alpha_bar: float, prediction_type: str, clip_sample: bool
) -> torch.Tensor:
    """Predicted clean image with ``x = sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * epsilon``."""
    signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    x0 = (x - noise * output) / signal if prediction_type == "epsilon" else signal * x - noise * output
    return x0.clamp(-1, 1) if clip_sample else x0


def _split(
    output: torch.Tensor, x: torch.Tensor, alpha_bar: float, prediction_type: str, clip_sample: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted clean image and the noise that goes with it; see :func:`_clean`."""
    x0 = _clean(output, x, alpha_bar, prediction_type, clip_sample)
    return x0, (x - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5


def _batched(timesteps: list[int], x: torch.Tensor) -> torch.Tensor:
    """All timestep tensors of a chain at once, ``(steps, B)``, so that no step has to make its own."""
    return torch.tensor(timesteps, dtype=torch.long, device=x.device)[:, None].expand(-1, x.shape[0]).contiguous()


def _check_steps(num_train_timesteps: int, num_inference_steps: int) -> None:
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps must lie in 1..{num_train_timesteps} (the training timesteps), "
            f"got {num_inference_steps}"
        )


def _check_prediction_type(prediction_type: str) -> None:
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}")
