# SPDX-License-Identifier: Apache-2.0
"""Candidates on demand, denoised in full batches: free places in a batch take candidates of the next slices."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contourdiff.sampling.noise import CandidatePlace, DenoiseCandidates, round_places
from contourdiff.sampling.selection import SelectionRules


@dataclass(eq=False)
class CandidatePool:
    """Candidates of one volume, denoised in full batches across slices and rounds.

    A batch that the current slice does not fill takes, in this order: first rounds of the next slices, which are always
    needed; then further rounds of the current slice and of those whose first round is drawn, which may be. The pool
    looks ahead by at most two batches of first rounds, so that memory does not grow with the number of slices.
    Contours are ``(slices, H, W)``, of all slices of the volume ``case``; ``order`` has those that will be requested.
    """

    denoise: DenoiseCandidates
    contours: Tensor
    case: str
    order: Sequence[int]
    rules: SelectionRules
    batch_size: int

    def __post_init__(self) -> None:
        self._ready: dict[CandidatePlace, Tensor] = {}
        self._position = 0  # of the current slice in the order

    def __call__(self, slice_index: int, round_: int) -> Tensor:
        """All candidates of one round of one slice: ``(candidates, H, W)``."""
        places = self._places(slice_index, round_)
        missing = [place for place in places if place not in self._ready]
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            batch += self._ahead(self.batch_size - len(batch), missing)
            slices = [place.slice_index for place in batch]
            contours = self.contours[slices].unsqueeze(1)
            images = self.denoise(contours, batch)
            self._ready.update(zip(batch, images, strict=True))
        return torch.stack([self._ready[place] for place in places])

    def drawn(self, slice_index: int, rounds: int) -> Tensor:
        """All candidates of the first ``rounds`` of a slice that is not forgotten: ``(N, H, W)``."""
        candidates = [self(slice_index, round_) for round_ in range(rounds)]
        return torch.cat(candidates)

    def forget(self, slice_index: int) -> None:
        """Free the candidates of a chosen slice; slices are forgotten in slice order."""
        for place in list(self._ready):
            if place.slice_index == slice_index:
                del self._ready[place]
        self._position = self.order.index(slice_index, self._position) + 1

    def _places(self, slice_index: int, round_: int) -> list[CandidatePlace]:
        return round_places(self.case, slice_index, round_, self.rules.candidates)

    def _ahead(self, count: int, missing: Collection[CandidatePlace]) -> list[CandidatePlace]:
        """Up to ``count`` places that are neither ready nor ``missing``."""
        ahead: list[CandidatePlace] = []
        for slice_index, round_ in self._rounds_ahead():
            for place in self._places(slice_index, round_):
                if len(ahead) == count:
                    return ahead
                if place not in self._ready and place not in missing:
                    ahead.append(place)
        return ahead

    def _rounds_ahead(self) -> Iterator[tuple[int, int]]:
        """Rounds ``(slice, round)`` to draw ahead of need, the most useful first."""
        reach = math.ceil(2 * self.batch_size / self.rules.candidates)
        current = self.order[self._position]
        start = self._position + 1
        begun = self.order[start : start + reach]
        waiting = [place for place in self._ready if place.slice_index != current]
        if len(waiting) < 2 * self.batch_size:
            for slice_index in begun:
                yield slice_index, 0
        else:
            ready = {place.slice_index for place in waiting}
            begun = [slice_index for slice_index in begun if slice_index in ready]
        for round_ in range(1, self.rules.max_rounds):
            yield current, round_
        for round_ in range(1, self.rules.max_rounds):
            for slice_index in begun:
                yield slice_index, round_
