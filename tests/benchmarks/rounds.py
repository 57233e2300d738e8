# SPDX-License-Identifier: Apache-2.0
"""Network calls for a slice against the share of candidates that pass: ours in batches, and one round a call."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from benchmarks.settings import Settings, table_of
from contourdiff.sampling.candidate_pool import CandidatePool
from contourdiff.sampling.noise import CandidatePlace
from contourdiff.sampling.selection import Choice, SelectionRules, choose

PASS_RATES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
BATCH_SIZES = (4, 8, 64)
OFFSET = 12.0  # gray levels between a candidate that passes and one that does not
RULES = SelectionRules(
    candidates=4, max_rounds=5, mean_threshold=OFFSET / 4, distance_threshold=50.0
)


class Counts(NamedTuple):
    """Network calls of one volume, candidates asked for by the selection, and what it chose."""

    calls: int
    asked: int
    choices: list[Choice]


def candidate_image(place: CandidatePlace, pass_rate: float) -> torch.Tensor:
    """Synthetic candidate of two pixels, ``(1, 2)``, that passes with probability ``pass_rate``, whatever came before.

    One that passes lies halfway between the two images of the slice before; one that does not is off to the side, in
    the direction that the slice before did not take. Their mean squared differences from either are 18, and 90: the
    threshold of ``RULES`` lies between.
    """
    case, index, round_, candidate = place
    image = torch.tensor([[(index + 1) // 2, index // 2]]) * (OFFSET / 2)
    drawn = random.Random(f"{case} {index} {round_} {candidate}").random()
    if drawn >= pass_rate:
        image[0, index % 2] += OFFSET
    return image


def in_batches(slices: int, batch_size: int, pass_rate: float, case: str = "a") -> Counts:
    """Counts of our selection over one volume."""
    batches: list[Sequence[CandidatePlace]] = []
    drawn: set[CandidatePlace] = set()

    def denoise(contours: torch.Tensor, places: Sequence[CandidatePlace]) -> torch.Tensor:
        if len(places) > batch_size:
            raise ValueError(f"expected up to {batch_size} candidates, got {len(places)}")
        if len(set(places)) < len(places) or not drawn.isdisjoint(places):
            raise ValueError(f"expected each candidate once, got {places} again")
        batches.append(places)
        drawn.update(places)
        return torch.stack([candidate_image(place, pass_rate) for place in places])

    order = list(range(slices))
    pool = CandidatePool(denoise, torch.zeros(slices, 1, 2), case, order, RULES, batch_size)
    choices = []
    for choice, _ in choose(pool, order, RULES):
        choices.append(choice)
        pool.forget(choice.slice_index)
    rounds = sum(choice.rounds for choice in choices)
    return Counts(len(batches), rounds * RULES.candidates, choices)


def in_sequence(slices: int, pass_rate: float, case: str = "a") -> Counts:
    """Counts of the same selection with one call for each round."""
    rounds: list[tuple[int, int]] = []

    def draw(index: int, round_: int) -> torch.Tensor:
        rounds.append((index, round_))
        images = []
        for candidate in range(RULES.candidates):
            place = CandidatePlace(case, index, round_, candidate)
            images.append(candidate_image(place, pass_rate))
        return torch.stack(images)

    choices = [choice for choice, _ in choose(draw, range(slices), RULES)]
    return Counts(len(rounds), len(rounds) * RULES.candidates, choices)


def run(settings: Settings, directory: Path) -> dict[str, Any]:
    """Mean counts over volumes, for all pass rates and batch sizes; ``failures`` if selections differ."""
    slices, volumes = (20, 2) if settings.quick else (100, 5)
    cases = [f"case {number}" for number in range(volumes)]
    rows = []
    failures = []
    for pass_rate in tqdm(PASS_RATES, "rounds", unit="pass rate", leave=False):
        plain = [in_sequence(slices, pass_rate, case) for case in cases]
        rows.append(_row(pass_rate, "in sequence", RULES.candidates, plain, slices))
        for batch_size in BATCH_SIZES:
            counts = [in_batches(slices, batch_size, pass_rate, case) for case in cases]
            rows.append(_row(pass_rate, "in batches", batch_size, counts, slices))
            if _choices(counts) != _choices(plain):
                failures.append(
                    f"pass rate {pass_rate}, batch size {batch_size}: choices differ from the sequence"
                )
    return {"slices": slices, "volumes": volumes, "rows": rows, "failures": failures}


def report(result: dict[str, Any]) -> str:
    """Markdown of :func:`run`."""
    description = (
        f"Synthetic candidates, no network: {result['volumes']} volumes of {result['slices']} slices, "
        f"{RULES.candidates} candidates, up to {RULES.max_rounds} rounds. An item is one candidate of a batch; padding "
        "counts. Choices are the same for all ways."
    )
    return f"{description}\n\n{table_of(result['rows'])}"


def _choices(counts: Sequence[Counts]) -> list[list[Choice]]:
    return [volume.choices for volume in counts]


def _row(
    pass_rate: float, way: str, batch_size: int, counts: Sequence[Counts], slices: int
) -> dict[str, Any]:
    calls = fmean([volume.calls for volume in counts])
    asked = fmean([volume.asked for volume in counts])
    accepted = 0
    for choices in _choices(counts):
        accepted += sum(choice.accepted for choice in choices)
    return {
        "pass rate": pass_rate,
        "way": way,
        "batch size": batch_size,
        "calls for a volume": calls,
        "calls a slice": calls / slices,
        "items a slice": calls * batch_size / slices,
        "calls an accepted slice": calls / (accepted / len(counts)),
        "share of items that were asked for": asked / (calls * batch_size),
    }
