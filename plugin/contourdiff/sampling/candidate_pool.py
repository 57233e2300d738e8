# SPDX-License-Identifier: Apache-2.0
"""Candidates on demand, denoised in full batches: free places in a batch take candidates of the next slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from contourdiff.sampling.noise import DenoiseItems
from contourdiff.sampling.selection import SelectionRules

Place = tuple[int, int, int]
"""(slice, round, candidate)"""


@dataclass(eq=False)
class CandidatePool:
    """Candidates of one volume, denoised in full batches across slices and rounds.

    A batch that the current slice does not fill takes, in this order: first rounds of the next slices, which are always
    needed; then further rounds of the current slice and of those whose first round is drawn, which may be needed and
    cost nothing because the batch is computed anyway. The pool looks ahead by at most two batches of first rounds, so
    that memory does not grow with the number of slices.

    Args:
        denoise: called with contours ``(N, 1, H, W)`` of up to ``batch_size`` items.
        contours: ``(slices, H, W)``, of all slices of the volume ``case``.
        order: slices in the order in which they are requested.
        rules: candidates a round, and rounds that a slice may take.
    """

    denoise: DenoiseItems
    contours: torch.Tensor
    case: str
    order: Sequence[int]
    rules: SelectionRules
    batch_size: int
    _ready: dict[Place, torch.Tensor] = field(default_factory=dict, init=False)
    _requested: dict[int, int] = field(default_factory=dict, init=False)
    _position: int = field(default=0, init=False)

    def __call__(self, slice_index: int, round_: int) -> torch.Tensor:
        """All candidates of one round of one slice: ``(candidates, H, W)``."""
        self._requested[slice_index] = round_
        places = self._round(slice_index, round_)
        missing = [place for place in places if place not in self._ready]
        while missing:
            batch, missing = missing[: self.batch_size], missing[self.batch_size :]
            batch += self._ahead(self.batch_size - len(batch), {*batch, *missing})
            contours = self.contours[[place[0] for place in batch]][:, None]
            images = self.denoise(contours, [(self.case, *place) for place in batch])
            self._ready.update(zip(batch, images, strict=True))
        return torch.stack([self._ready[place] for place in places])

    def drawn(self, slice_index: int) -> torch.Tensor:
        """Every requested candidate of all rounds of a slice that is not forgotten: ``(N, H, W)``."""
        rounds = range(self._requested[slice_index] + 1)
        return torch.stack(
            [self._ready[place] for round_ in rounds for place in self._round(slice_index, round_)]
        )

    def forget(self, slice_index: int) -> None:
        """Free the candidates of a chosen slice; slices are forgotten in slice order."""
        self._ready = {
            place: image for place, image in self._ready.items() if place[0] != slice_index
        }
        self._position = self.order.index(slice_index, self._position) + 1

    def _round(self, slice_index: int, round_: int) -> list[Place]:
        return [(slice_index, round_, candidate) for candidate in range(self.rules.candidates)]

    def _ahead(self, count: int, taken: set[Place]) -> list[Place]:
        """Up to ``count`` places that are neither ready nor ``taken``."""
        near = self.order[
            self._position : self._position + 1 + -(-2 * self.batch_size // self.rules.candidates)
        ]
        current, following = near[:1], near[1:]
        waiting = sum(place[0] not in current for place in self._ready)
        rounds = [(index, 0) for index in following if waiting < 2 * self.batch_size]
        rounds += [
            (index, round_) for round_ in range(1, self.rules.max_rounds) for index in current
        ]
        begun = [
            index for index in following if (index, 0, 0) in self._ready or (index, 0) in rounds
        ]
        rounds += [(index, round_) for round_ in range(1, self.rules.max_rounds) for index in begun]
        places = (place for index, round_ in rounds for place in self._round(index, round_))
        free = [place for place in places if place not in self._ready and place not in taken]
        return free[:count]
