# SPDX-License-Identifier: Apache-2.0
"""Laws of a candidate's noise: it depends on its key and on nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from contourdiff.sampling.noise import (
    CandidateKey,
    CandidateNoise,
    CandidatePlace,
    NoiseStream,
    candidate_generator,
    correlation_weights,
)
from contourdiff.sampling.selection import SelectionRules
from helpers.inferers import make_inferer, random_contours, translate_contours
from helpers.networks import make_seeded

KEY = CandidateKey(seed=7, case="case_01", slice_index=12, round=0, candidate=3)
SHAPE = (1, 8, 8)
PINNED_SEED = 7508212956132590821  # of the key (0, "case", 0, 0, 0): translations stay reproducible


def draws(
    keys: list[CandidateKey], count: int = 3, weights: Sequence[float] = (1.0,)
) -> torch.Tensor:
    """Noise of ``keys``, ``(B, count, 1, 8, 8)``."""
    stream = NoiseStream(keys, SHAPE, weights=weights)
    return torch.stack([stream.draw() for _ in range(count)], dim=1)


@pytest.mark.parametrize("length_mm", [0.0, 2.0, 9.0])
def test_noise_is_the_same_alone_in_a_batch_and_permuted(length_mm: float) -> None:
    weights = correlation_weights(length_mm, 4.0)
    keys = [KEY._replace(slice_index=index // 2, candidate=index % 2) for index in range(6)]
    together = draws(keys, weights=weights)
    for index, key in enumerate(keys):
        assert torch.equal(draws([key], weights=weights)[0], together[index])
    order = [3, 0, 4, 2, 2, 5, 1]
    assert torch.equal(draws([keys[index] for index in order], weights=weights), together[order])


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
    noise = torch.cat(
        [NoiseStream([KEY._replace(candidate=c)], (1, 100, 100)).draw() for c in range(10)]
    )
    count = noise.numel()
    assert noise.shape == (10, 1, 100, 100)
    assert noise.dtype == torch.float32
    assert abs(float(noise.mean())) < 5 / count**0.5
    assert abs(float(noise.var()) - 1) < 5 * (2 / count) ** 0.5


def test_generator_is_pinned_to_its_key_across_versions() -> None:
    assert (
        candidate_generator(KEY).initial_seed()
        == candidate_generator(CandidateKey(*KEY)).initial_seed()
    )
    assert candidate_generator(CandidateKey(0, "case", 0, 0, 0)).initial_seed() == PINNED_SEED


LENGTH_MM, SPACING_MM = 6.0, 4.0
LARGE = (1, 200, 200)
SPREAD = 5 / 200  # five standard errors of a correlation over the pixels of one slice


def correlated(keys: list[CandidateKey]) -> torch.Tensor:
    """Noise of ``keys``, ``(B, 40000)``."""
    return (
        NoiseStream(keys, LARGE, weights=correlation_weights(LENGTH_MM, SPACING_MM))
        .draw()
        .flatten(1)
    )


@pytest.mark.parametrize("slice_spacing_mm", [0.5, 4.0])
def test_length_zero_leaves_the_noise_as_it_was(slice_spacing_mm: float) -> None:
    weights = correlation_weights(0.0, slice_spacing_mm)
    assert weights == (1.0,)
    keys = [KEY._replace(slice_index=index) for index in range(3)]
    generators = [candidate_generator(key) for key in keys]
    stream = NoiseStream(keys, SHAPE, weights=weights)
    for _ in range(3):
        assert torch.equal(
            stream.draw(), torch.stack([torch.randn(SHAPE, generator=each) for each in generators])
        )


def test_a_length_far_below_the_spacing_is_length_zero() -> None:
    for length_mm in (0.1, 1e-200, 5e-324):
        assert torch.equal(draws([KEY], weights=correlation_weights(length_mm, 4.0)), draws([KEY]))


@pytest.mark.parametrize(
    ("length_mm", "slice_spacing_mm"), [(1, 1), (1.5, 1), (6, 4), (10, 4), (20, 0.5)]
)
def test_weights_make_the_correlation_that_their_length_says(
    length_mm: float, slice_spacing_mm: float
) -> None:
    weights = correlation_weights(length_mm, slice_spacing_mm)
    assert len(weights) % 2 == 1
    assert weights == weights[::-1]
    for distance in range(len(weights)):
        overlap = math.fsum(a * b for a, b in zip(weights, weights[distance:], strict=False))
        expected = math.exp(-((distance * slice_spacing_mm / length_mm) ** 2) / 2)
        assert overlap == pytest.approx(
            expected, abs=0.02 if length_mm == slice_spacing_mm else 1e-4
        )


def test_slices_are_standard_normal_and_correlated_by_their_distance_from_the_first_on() -> None:
    """The same for the first slices of a volume and for middle ones."""
    for first in (0, 50):
        noise = correlated([KEY._replace(slice_index=first + index) for index in range(4)])
        assert noise.dtype == torch.float32
        for index in range(4):
            assert abs(float(noise[index].mean())) < SPREAD
            assert abs(float(noise[index].var()) - 1) < 2**0.5 * SPREAD
            for other in range(index):
                expected = math.exp(-(((index - other) * SPACING_MM / LENGTH_MM) ** 2) / 2)
                assert abs(float((noise[index] * noise[other]).mean()) - expected) < 2**0.5 * SPREAD


@pytest.mark.parametrize(
    "other", [{"seed": 8}, {"case": "b"}, {"round": 1}, {"candidate": 4}], ids=str
)
def test_correlation_along_slices_does_not_reach_what_differs_elsewhere(
    other: dict[str, int | str],
) -> None:
    noise = correlated([KEY, KEY._replace(**other), KEY._replace(slice_index=13, **other)])
    correlation = torch.corrcoef(noise)[0, 1:]
    assert float(correlation.abs().max()) < SPREAD


def test_pixels_and_draws_stay_independent() -> None:
    stream = NoiseStream([KEY], LARGE, weights=correlation_weights(LENGTH_MM, SPACING_MM))
    first, second = stream.draw()[0, 0], stream.draw()[0, 0]
    pairs = ((first, second), (first[:, 1:], first[:, :-1]), (first[1:], first[:-1]))
    for one, other in pairs:
        assert abs(float((one * other).mean())) < SPREAD


def test_impossible_kernels_are_refused() -> None:
    for length_mm in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"expected length_mm to be .* 0 .* got {length_mm}"):
            correlation_weights(length_mm, 4.0)
    for spacing in (0.0, -4.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"expected slice_spacing_mm to be .* got {spacing}"):
            correlation_weights(6.0, spacing)
    for weights in ((), (0.6, 0.8), (0.5, 0.5, 0.5), (math.nan,)):
        with pytest.raises(
            ValueError, match="weights must be odd in number and their squares sum to 1"
        ):
            NoiseStream([KEY], SHAPE, weights=weights)


@pytest.mark.parametrize("weights", [(1.0,), (0.6, 0.0, 0.8)])
def test_batches_that_share_white_noise_are_those_of_streams_of_their_own(
    weights: tuple[float, ...],
) -> None:
    noise = CandidateNoise(KEY.seed, weights)
    places = [CandidatePlace("case_01", index, 0, 3) for index in range(6)]
    for batch in (places[:4], places[2:], places[5:], places[:1]):
        keys = [CandidateKey(KEY.seed, *place) for place in batch]
        stream, alone = noise.stream(batch, SHAPE), NoiseStream(keys, SHAPE, weights=weights)
        for _ in range(3):
            assert torch.equal(stream.draw(), alone.draw())


def test_sizes_share_no_noise() -> None:
    noise, place = CandidateNoise(), CandidatePlace("a", 0, 0, 0)
    for shape in (SHAPE, LARGE, SHAPE):
        key = CandidateKey(0, *place)
        assert torch.equal(noise.stream([place], shape).draw(), NoiseStream([key], shape).draw())


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True])
def test_impossible_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"expected seed to be a whole number from 0 to .*, got"):
        CandidateNoise(seed)


@pytest.mark.parametrize("weights", [(1.0,), correlation_weights(8.0, 3.0)])
def test_noise_of_later_steps_is_each_candidates_own(weights: tuple[float, ...]) -> None:
    """However far the first noise is correlated along the slices."""
    keys = [CandidateKey(0, "case", index, 0, 0) for index in (3, 4)]
    stream, alone = NoiseStream(keys, SHAPE, weights=weights), NoiseStream(keys[1:], SHAPE)
    stream.draw()
    alone.draw()
    for _ in range(2):
        assert torch.equal(stream.draw()[1:], alone.draw())


def test_correlated_noise_calms_a_volume_and_zero_length_changes_nothing() -> None:
    one = SelectionRules(1, 1)
    same = random_contours()[1].expand(7, -1, -1).clone()
    assert torch.equal(translate_contours(same, noise_length_mm=0.0), translate_contours(same))
    changes = {
        length: float(
            (translate_contours(same, rules=one, noise_length_mm=length).diff(dim=0))
            .square()
            .mean()
        )
        for length in (0.0, 1.0, 3.0)
    }
    assert changes[3.0] < 0.5 * changes[1.0] < 0.5 * changes[0.0]


def test_correlated_noise_requires_the_distance_of_slices() -> None:
    with pytest.raises(
        ValueError, match="noise_length_mm requires the slices' distance; expected a MetaTensor"
    ):
        make_inferer(noise_length_mm=2.0)(random_contours()[None, None], make_seeded())
