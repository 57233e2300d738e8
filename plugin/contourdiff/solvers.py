# SPDX-License-Identifier: Apache-2.0
"""The reverse process: pure functions from noise to image, given what the network predicts.

Names: ``alpha_bar`` is the cumulative product of ``1 - beta`` (the paper's alpha with a bar), ``x0`` the clean image.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Draw = Callable[[], torch.Tensor]

PREDICTION_TYPES = ("epsilon", "v_prediction")


def spaced_timesteps(num_train_timesteps: int, num_inference_steps: int) -> list[int]:
    """Descending timesteps from ``num_train_timesteps - 1`` to 0, evenly spaced; one step starts at the noisiest.

    Raises:
        ValueError: unless ``1 <= num_inference_steps <= num_train_timesteps``.
    """
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps must lie in 1..{num_train_timesteps} (the training timesteps), "
            f"got {num_inference_steps}"
        )
    return [round(t) for t in np.linspace(num_train_timesteps - 1, 0, num_inference_steps)]


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


def _split(
    output: torch.Tensor, x: torch.Tensor, alpha_bar: float, prediction_type: str, clip_sample: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted clean image and noise with ``x = sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * epsilon``."""
    signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    x0 = (x - noise * output) / signal if prediction_type == "epsilon" else signal * x - noise * output
    if clip_sample:
        x0 = x0.clamp(-1, 1)
    return x0, (x - signal * x0) / noise


def _batched(timesteps: list[int], x: torch.Tensor) -> torch.Tensor:
    """All timestep tensors of a chain at once, ``(steps, B)``, so that no step has to make its own."""
    return torch.tensor(timesteps, dtype=torch.long, device=x.device)[:, None].expand(-1, x.shape[0]).contiguous()


def _check_prediction_type(prediction_type: str) -> None:
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}")
