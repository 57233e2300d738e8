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

from benchmarks.settings import Settings, table
from contourdiff.sampling.candidate_pool import CandidatePool
from contourdiff.sampling.selection import Choice, SelectionRules, choose

PASS_RATES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
BATCH_SIZES = (4, 8, 64)
OFFSET = 12.0  # gray levels between a candidate that passes and one that does not
RULES = SelectionRules(
    candidates=4, max_rounds=5, mean_threshold=OFFSET / 4, distance_threshold=50.0
)

Item = tuple[str, int, int, int]
"""(case, slice, round, candidate)"""


class Counts(NamedTuple):
    """Network calls of one volume, candidates asked for by the selection, and what it chose."""

    calls: int
    asked: int
    choices: list[Choice]


def candidate_image(item: Item, pass_rate: float) -> torch.Tensor:
    """Synthetic candidate of two pixels, ``(1, 2)``, that passes with probability ``pass_rate``, whatever came before.

    One that passes lies halfway between the two images of the slice before; one that does not is off to the side, in
    the direction that the slice before did not take. Their mean squared differences from either are 18, and 90: the
    threshold of ``RULES`` lies between.
    """
    case, index, round_, candidate = item
    image = torch.tensor([[(index + 1) // 2, index // 2]]) * (OFFSET / 2)
    passes = random.Random(f"{case} {index} {round_} {candidate}").random() < pass_rate
    if not passes:
        image[0, index % 2] += OFFSET
    return image


def in_batches(slices: int, batch_size: int, pass_rate: float, case: str = "a") -> Counts:
    """Counts of our selection over one volume."""
    calls: list[Sequence[Item]] = []

    def denoise(contours: torch.Tensor, items: Sequence[Item]) -> torch.Tensor:
        if len(items) > batch_size or len(set(items)) < len(items):
            raise ValueError(f"expected up to {batch_size} different items, got {items}")
        calls.append(items)
        return torch.stack([candidate_image(item, pass_rate) for item in items])

    order = list(range(slices))
    drawer = CandidatePool(denoise, torch.zeros(slices, 1, 2), case, order, RULES, batch_size)
    choices = []
    for choice, _ in choose(drawer, order, RULES):
        choices.append(choice)
        drawer.forget(choice.slice_index)
    drawn = [item for items in calls for item in items]
    if len(set(drawn)) < len(drawn):
        raise ValueError("a candidate was denoised twice")
    return Counts(len(calls), sum(choice.rounds for choice in choices) * RULES.candidates, choices)


def in_sequence(slices: int, pass_rate: float, case: str = "a") -> Counts:
    """Counts of the same selection with one call for each round."""
    rounds: list[tuple[int, int]] = []

    def draw(index: int, round_: int) -> torch.Tensor:
        rounds.append((index, round_))
        items = [(case, index, round_, candidate) for candidate in range(RULES.candidates)]
        return torch.stack([candidate_image(item, pass_rate) for item in items])

    choices = [choice for choice, _ in choose(draw, range(slices), RULES)]
    return Counts(len(rounds), len(rounds) * RULES.candidates, choices)


def run(settings: Settings, directory: Path) -> dict[str, Any]:
    """Mean counts over volumes, for all pass rates and batch sizes; ``failures`` if selections differ."""
    slices, volumes = (20, 2) if settings.quick else (100, 5)
    rows, failures = [], []
    for pass_rate in tqdm(PASS_RATES, "rounds", unit="pass rate", leave=False):
        cases = [f"case {number}" for number in range(volumes)]
        plain = [in_sequence(slices, pass_rate, case) for case in cases]
        rows.append(_row(pass_rate, "in sequence", RULES.candidates, plain, slices))
        for batch_size in BATCH_SIZES:
            counts = [in_batches(slices, batch_size, pass_rate, case) for case in cases]
            rows.append(_row(pass_rate, "in batches", batch_size, counts, slices))
            if [each.choices for each in counts] != [each.choices for each in plain]:
                failures.append(
                    f"pass rate {pass_rate}, batch size {batch_size}: choices differ from the sequence"
                )
    return {"slices": slices, "volumes": volumes, "rows": rows, "failures": failures}


def report(result: dict[str, Any]) -> str:
    """Markdown of :func:`run`."""
    columns = (
        "pass rate",
        "way",
        "batch size",
        "calls for a volume",
        "calls a slice",
        "items a slice",
        "calls an accepted slice",
        "share of items that were asked for",
    )
    told = (
        f"Synthetic candidates, no network: {result['volumes']} volumes of {result['slices']} slices, "
        f"{RULES.candidates} candidates, up to {RULES.max_rounds} rounds. An item is one candidate of a batch; padding "
        "counts. Choices are the same for all ways."
    )
    return (
        told + "\n\n" + table(columns, [[row[name] for name in columns] for row in result["rows"]])
    )


def _row(
    pass_rate: float, way: str, batch_size: int, counts: Sequence[Counts], slices: int
) -> dict[str, Any]:
    calls = fmean([each.calls for each in counts])
    accepted = fmean([sum(choice.accepted for choice in each.choices) for each in counts])
    return {
        "pass rate": pass_rate,
        "way": way,
        "batch size": batch_size,
        "calls for a volume": calls,
        "calls a slice": calls / slices,
        "items a slice": calls * batch_size / slices,
        "calls an accepted slice": calls / accepted,
        "share of items that were asked for": fmean([each.asked for each in counts])
        / (calls * batch_size),
    }
