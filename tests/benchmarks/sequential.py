# SPDX-License-Identifier: Apache-2.0
"""The paper's loop, written plainly: slice after slice, a round of candidates a network call, then the selection.

After Chen et al. 2024, Algorithm 2, with distances in float64 and the end that our rules give it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler
from monai.networks.schedulers import Scheduler

from contourdiff.sampling.noise import CandidateKey, NoiseStream
from contourdiff.sampling.selection import SelectionRules
from contourdiff.sampling.solvers import even_schedule

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Pick = tuple[int, int, int]
"""(slice, round, candidate)"""


class Translation(NamedTuple):
    """Gray levels ``(slices, H, W)``, the picks in slice order, and the batches that were denoised."""

    volume: torch.Tensor
    picks: list[Pick]
    calls: int


class SequentialSampler:
    """Rounds of candidates, each from a chain of ``DDIMScheduler.step`` of diffusers.

    That scheduler takes ``t - T // n`` for the timestep before ``t``, which no list of timesteps can change. So it is
    given the schedule of the chain alone: T = n, and each step goes from one entry to the next. The network is told
    the training timestep.

    Args:
        network: called with ``(cat[x, contour] (B, 2, H, W), timesteps (B,))``.
        training: noise schedule of the training.
        steps: network calls for a candidate.
        candidates: items in a call.
        layout: memory layout of the network's input.
    """

    def __init__(
        self,
        network: Network,
        training: Scheduler,
        steps: int,
        candidates: int,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.network = network
        self.timesteps = [level.timestep for level in even_schedule(training.alphas_cumprod, steps)]
        self.candidates = candidates
        self.layout = layout
        self.calls = 0
        scheduler: Any = DDIMScheduler(
            num_train_timesteps=steps, prediction_type=str(training.prediction_type)
        )
        scheduler.alphas_cumprod = training.alphas_cumprod[self.timesteps[::-1]].float()
        scheduler.set_timesteps(steps)
        self.scheduler = scheduler

    def draw(self, contour: torch.Tensor, slice_index: int, round_: int) -> torch.Tensor:
        """Candidates of one round for ``contour (H, W)``: ``(candidates, H, W)`` gray levels."""
        keys = []
        for candidate in range(self.candidates):
            keys.append(CandidateKey(0, "", slice_index, round_, candidate))
        x = NoiseStream(keys, (1, *contour.shape), contour.device).draw()
        contours = contour[None, None].repeat(self.candidates, 1, 1, 1)
        for entry, timestep in zip(self.scheduler.timesteps, self.timesteps, strict=True):
            inputs = torch.cat([x, contours], dim=1).contiguous(memory_format=self.layout)
            timesteps = torch.full((self.candidates,), timestep, dtype=torch.long, device=x.device)
            output = self.network(inputs, timesteps)
            step = self.scheduler.step(output, int(entry), x, use_clipped_model_output=True)
            x = step.prev_sample
        self.calls += 1
        return ((x[:, 0] + 1) * 127.5).clamp(0, 255)


def translate_in_sequence(
    contours: torch.Tensor, sampler: SequentialSampler, rules: SelectionRules
) -> Translation:
    """Translate ``contours (slices, H, W)``; slices without a contour stay 0."""
    volume = torch.zeros_like(contours)
    picks = []
    calls_before = sampler.calls
    before: torch.Tensor | None = None
    for index, contour in enumerate(contours):
        if not contour.any():
            before = None
            continue
        before, pick = _select(contour, index, before, sampler, rules)
        volume[index] = before
        picks.append(pick)
    return Translation(volume, picks, sampler.calls - calls_before)


def _select(
    contour: torch.Tensor,
    index: int,
    before: torch.Tensor | None,
    sampler: SequentialSampler,
    rules: SelectionRules,
) -> tuple[torch.Tensor, Pick]:
    """Without a slice ``before`` the first candidate of low mean, else the nearest of a round; or the best of all."""
    best_score = float("inf")
    best_image = contour
    best = (index, 0, 0)
    for round_ in range(rules.max_rounds):
        images = sampler.draw(contour, index, round_)
        for candidate, image in enumerate(images):
            score = _score(image, before)
            pick = (index, round_, candidate)
            if before is None and score < rules.mean_threshold:
                return image, pick
            if score < best_score:
                best_score, best_image, best = score, image, pick
        if before is not None and best_score <= rules.distance_threshold:
            break
    return best_image, best


def _score(image: torch.Tensor, before: torch.Tensor | None) -> float:
    """Mean of a slice without a neighbor, in gray levels; else the mean squared difference, in gray levels squared."""
    if before is None:
        return float(image.double().mean())
    return float(((image.double() - before.double()) ** 2).mean())
