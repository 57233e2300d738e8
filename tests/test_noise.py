# SPDX-License-Identifier: Apache-2.0
"""Laws of a candidate's noise: it depends on its key and on nothing else."""

from __future__ import annotations

import pytest
import torch

from contourdiff.noise import CandidateKey, NoiseStream, candidate_generator

KEY = CandidateKey(seed=7, case="case_01", slice_index=12, round=0, candidate=3)
SHAPE = (1, 8, 8)
PINNED_SEED = 7508212956132590821  # of the key (0, "case", 0, 0, 0): translations stay reproducible


def draws(keys: list[CandidateKey], count: int = 3) -> torch.Tensor:
    """Noise of ``keys``, ``(B, count, 1, 8, 8)``."""
    stream = NoiseStream(keys, SHAPE)
    return torch.stack([stream.draw() for _ in range(count)], dim=1)


def test_noise_is_the_same_alone_in_a_batch_and_permuted() -> None:
    keys = [KEY._replace(slice_index=index) for index in range(5)]
    together = draws(keys)
    for index, key in enumerate(keys):
        assert torch.equal(draws([key])[0], together[index])
    order = [3, 0, 4, 2, 1]
    assert torch.equal(draws([keys[index] for index in order]), together[order])


def test_noise_does_not_depend_on_the_global_generator_and_leaves_it_alone() -> None:
    torch.manual_seed(1)
    first = draws([KEY])
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(2)
    assert torch.equal(draws([KEY]), first)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 8},
        {"case": "case_02"},
        {"slice_index": 13},
        {"round": 1},
        {"candidate": 4},
        {"slice_index": 3, "candidate": 12},
        {"case": "case_011", "slice_index": 2},
    ],
    ids=str,
)
def test_keys_that_differ_anywhere_give_unrelated_noise(other: dict[str, int | str]) -> None:
    first, second = draws([KEY], 20).flatten(), draws([KEY._replace(**other)], 20).flatten()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert abs(float(correlation)) < 5 / first.numel() ** 0.5


def test_draws_of_one_stream_differ() -> None:
    noise = draws([KEY], 4)[0].flatten(1)
    correlation = torch.corrcoef(noise) - torch.eye(4)
    assert float(correlation.abs().max()) < 5 / noise.shape[1] ** 0.5


def test_noise_is_standard_normal() -> None:
    noise = torch.cat([NoiseStream([KEY._replace(candidate=c)], (1, 100, 100)).draw() for c in range(10)])
    count = noise.numel()
    assert noise.shape == (10, 1, 100, 100)
    assert noise.dtype == torch.float32
    assert abs(float(noise.mean())) < 5 / count**0.5
    assert abs(float(noise.var()) - 1) < 5 * (2 / count) ** 0.5


def test_generator_is_pinned_to_its_key_across_versions() -> None:
    assert candidate_generator(KEY).initial_seed() == candidate_generator(CandidateKey(*KEY)).initial_seed()
    assert candidate_generator(CandidateKey(0, "case", 0, 0, 0)).initial_seed() == PINNED_SEED
