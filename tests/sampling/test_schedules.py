# SPDX-License-Identifier: Apache-2.0
"""Laws of the schedules: levels descend from the noisiest to the last, for any number of steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from contourdiff.sampling.solvers import even_schedule, karras_schedule

TOTAL = 1000
ALPHA_BARS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, TOTAL, dtype=torch.float64), dim=0)


def spaced_timesteps(total: int, steps: int) -> list[int]:
    return [level.timestep for level in even_schedule(torch.linspace(0.99, 0.01, total), steps)]


@pytest.mark.parametrize(
    ("total", "steps"), [(1000, 2), (1000, 10), (1000, 50), (1000, 999), (1000, 1000), (7, 5)]
)
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
    with pytest.raises(
        ValueError, match=rf"num_inference_steps to be .* from 1 to 10, got {steps}"
    ):
        spaced_timesteps(10, steps)


@pytest.mark.parametrize(
    ("steps", "distinct"), [(1, 1), (2, 2), (20, 20), (50, 50), (78, 78), (79, 78), (100, 99)]
)
def test_karras_levels_fall_from_end_to_end_and_late_ones_may_share_a_timestep(
    steps: int, distinct: int
) -> None:
    schedule = karras_schedule(ALPHA_BARS, steps)
    timesteps, sigmas = [level.timestep for level in schedule], [level.sigma for level in schedule]
    ends = [float(((1 - ALPHA_BARS[t]) / ALPHA_BARS[t]).sqrt()) for t in (TOTAL - 1, 0)]
    assert len(timesteps) == len(sigmas) == steps
    assert len(set(timesteps)) == distinct
    assert timesteps == sorted(timesteps, reverse=True)
    assert (timesteps[0], sigmas[0]) == (TOTAL - 1, pytest.approx(ends[0]))
    assert all(before > after for before, after in pairwise(sigmas))
    if steps > 1:
        assert (timesteps[-1], sigmas[-1]) == (0, pytest.approx(ends[1]))
        gaps = [before - after for before, after in pairwise(sigma ** (1 / 7) for sigma in sigmas)]
        assert gaps == pytest.approx(
            [(ends[0] ** (1 / 7) - ends[1] ** (1 / 7)) / (steps - 1)] * (steps - 1)
        )


def test_known_alpha_bars_are_the_schedule_of_the_paper() -> None:
    assert float(ALPHA_BARS[-1]) == pytest.approx(
        np.prod(1 - np.linspace(1e-4, 0.02, TOTAL)), rel=1e-9
    )
