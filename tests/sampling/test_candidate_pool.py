# SPDX-License-Identifier: Apache-2.0
"""Candidates in full batches: working ahead changes no choice."""

from __future__ import annotations

import pytest
import torch

from contourdiff.sampling.candidate_pool import CandidatePool
from contourdiff.sampling.noise import CandidatePlace
from contourdiff.sampling.selection import SelectionRules, choose
from helpers.inferers import as_case, make_inferer, random_contours
from helpers.networks import make_seeded


def synthetic(slices: int, candidates: int, spread: float, seed: int = 0) -> torch.Tensor:
    """Images of every (slice, round, candidate): constant gray levels whose distances are known."""
    generator = torch.Generator().manual_seed(seed)
    return 100 + spread * torch.randn(slices, 5, candidates, generator=generator)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 8, 64])
@pytest.mark.parametrize("threshold", [0.0, 2.0, 1e9])
def test_work_ahead_changes_no_choice_and_is_bounded(batch_size: int, threshold: float) -> None:
    levels = synthetic(20, 4, 3.0)
    rules = SelectionRules(4, 5, mean_threshold=100.0, distance_threshold=threshold)
    indices = [index for index in range(20) if index not in (7, 8)]
    batches: list[int] = []
    seen: list[int] = []
    current = [0]

    def denoise(contours: torch.Tensor, places: list[CandidatePlace]) -> torch.Tensor:
        batches.append(len(contours))
        seen.extend(index for _, index, _, _ in places)
        assert max(seen) <= current[0] + 2 + -(-2 * batch_size // 4) + 1
        return torch.stack(
            [
                levels[index, round_, candidate].expand(2, 2)
                for _, index, round_, candidate in places
            ]
        )

    pool = CandidatePool(denoise, torch.ones(20, 2, 2), "a", indices, rules, batch_size)
    got, requested = [], 0
    for choice, _ in choose(pool, indices, rules):
        got.append(choice)
        requested += choice.rounds * 4
        drawn = pool.drawn(choice.slice_index, choice.rounds)
        assert len(drawn) == choice.rounds * 4
        pool.forget(choice.slice_index)
        current[0] = choice.slice_index
    plain = [
        choice
        for choice, _ in choose(
            lambda index, round_: levels[index, round_][:, None, None].expand(4, 2, 2),
            indices,
            rules,
        )
    ]
    assert got == plain
    assert max(batches) <= batch_size
    assert len(batches) <= -(-requested // min(batch_size, 4)) + 1


def test_a_low_pass_rate_wastes_no_full_batch() -> None:
    """Slices that fail all rounds: batches of 8 take two rounds of 4 at once, so half the calls of batches of 4."""
    calls = {}
    for batch_size in (4, 8):
        rules = SelectionRules(4, 4, mean_threshold=0.0, distance_threshold=0.0)
        (result,) = make_inferer(rules=rules, batch_size=batch_size).translate(
            as_case([random_contours()], ["a"]), make_seeded()
        )
        calls[batch_size] = result.network_calls
    assert calls == {4: 5 * 4, 8: 5 * 4 // 2}
