# SPDX-License-Identifier: Apache-2.0
"""Noise that belongs to a candidate: the same whether it is drawn alone, in a batch, first or last."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from contourdiff.limits import MAX_SEED, check_number, check_whole

CUT_OFF = 4  # standard deviations of the kernel along the slices; beyond lies less than 1e-7 of the variance


class CandidatePlace(NamedTuple):
    """Which candidate of which slice of which volume."""

    case: str
    slice_index: int
    round: int
    candidate: int


Place = tuple[str, int, int, int]
"""A [`CandidatePlace`][], or a plain tuple of the same content."""


def round_places(case: str, slice_index: int, round_: int, count: int) -> list[CandidatePlace]:
    """Places of the ``count`` candidates of one round of a slice."""
    return [CandidatePlace(case, slice_index, round_, candidate) for candidate in range(count)]


class CandidateKey(NamedTuple):
    """All that a candidate's noise depends on."""

    seed: int
    case: str
    slice_index: int
    round: int
    candidate: int


DenoiseCandidates = Callable[[Tensor, Sequence[CandidatePlace]], Tensor]
"""``(conditions (N, C, H, W), places) -> (N, H, W)`` gray levels in [0, 255]"""


def candidate_generator(key: CandidateKey) -> torch.Generator:
    """CPU generator seeded with the SHA-256 of ``key``: independent streams for keys that differ anywhere."""
    text = json.dumps(list(key))
    digest = hashlib.sha256(text.encode()).digest()
    seed = int.from_bytes(digest[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)


def correlation_weights(length_mm: float, slice_spacing_mm: float) -> tuple[float, ...]:
    """Weights that turn white noise of a slice and its neighbors into noise that is correlated along the slices.

    A Gaussian of standard deviation ``length_mm / sqrt(2)``, cut off at four of them. Two slices ``d`` mm apart are
    then correlated by ``exp(-d^2 / (2 length_mm^2))``, within 0.02 for a ``length_mm`` of one slice spacing or more.
    Weights are odd in number, the slice's own in the middle, and their squares sum to 1; ``(1.0,)`` for length 0.
    Raises ``ValueError`` for a length or spacing out of range.
    """
    check_number("length_mm", length_mm, 0, 1e6)
    check_number("slice_spacing_mm", slice_spacing_mm, 1e-6, 1e6)
    deviation = length_mm / 2**0.5 / slice_spacing_mm
    if deviation == 0:
        return (1.0,)
    reach = math.ceil(CUT_OFF * deviation)
    gaussian = []
    for offset in range(-reach, reach + 1):
        distance = offset / deviation
        gaussian.append(math.exp(-distance * distance / 2))
    norm = math.fsum(value**2 for value in gaussian) ** 0.5
    return tuple(value / norm for value in gaussian)


@dataclass(eq=False)
class NoiseStream:
    """Standard normal noise for a batch of candidates, each from its own generator.

    With more than one weight, the first noise of slice ``s`` is the sum over offsets ``j`` of ``weights[j]`` times the
    white noise whose key names slice ``s + j`` and is the same otherwise. That is a stationary Gaussian process along
    the slices: white noise goes on beyond the first slice and the last, so their variance is 1 too. Later noise is each
    candidate's own white noise.

    ``shape`` is of one candidate, ``(1, H, W)``. Noise is drawn on the CPU, so that every ``device`` sees the same.
    ``weights`` are as from [`correlation_weights`][], or ``ValueError``; ``known`` white noise is not drawn again.
    """

    keys: Sequence[CandidateKey]
    shape: Sequence[int]
    device: torch.device | str = "cpu"
    weights: Sequence[float] = (1.0,)
    known: Mapping[CandidateKey, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        squares = math.fsum(weight**2 for weight in self.weights)
        normalized = math.isclose(squares, 1, abs_tol=1e-6)
        if len(self.weights) % 2 == 0 or not normalized:
            raise ValueError(
                "weights must be odd in number and their squares sum to 1, as those of correlation_weights do, "
                f"got {tuple(self.weights)}"
            )
        self.white: dict[CandidateKey, Tensor] = {}  # of the first draw
        self._generators: list[torch.Generator] = []

    def draw(self) -> Tensor:
        """Next noise of every candidate: ``(B, 1, H, W)`` float32."""
        if not self.white:
            return self._first()
        if not self._generators:
            self._generators = [candidate_generator(key) for key in self.keys]
            self._randn_of(self._generators)  # the first noise, which is past
        return self._randn_of(self._generators).to(self.device)

    def _randn_of(self, generators: Sequence[torch.Generator]) -> Tensor:
        noise = []
        for generator in generators:
            noise.append(torch.randn(self.shape, generator=generator))
        return torch.stack(noise)

    def _first(self) -> Tensor:
        """Blend white noise on the device, in one order; product and sum apart, as a fused one rounds differently."""
        reach = len(self.weights) // 2
        rows = []
        for offset in range(-reach, reach + 1):
            shifted = []
            for key in self.keys:
                slice_index = key.slice_index + offset
                shifted.append(key._replace(slice_index=slice_index))
            rows.append(shifted)
        self._find_white(chain.from_iterable(rows))
        blends = []
        for weight, row in zip(self.weights, rows, strict=True):
            white = torch.stack([self.white[key] for key in row])
            blends.append(weight * white)
        return reduce(torch.add, blends)

    def _find_white(self, keys: Iterable[CandidateKey]) -> None:
        """Take the white noise of ``keys`` that is known, and draw the other."""
        unique = list(dict.fromkeys(keys))
        unknown = [key for key in unique if key not in self.known]
        drawn: dict[CandidateKey, Tensor] = {}
        if unknown:
            generators = [candidate_generator(key) for key in unknown]
            noise = self._randn_of(generators).to(self.device)
            drawn = dict(zip(unknown, noise, strict=True))
        white = {**self.known, **drawn}
        self.known = {}  # frees what this batch does not need
        self.white.update({key: white[key] for key in unique})


@dataclass(eq=False)
class CandidateNoise:
    """The noise of all candidates of a translation; batch after batch takes a [`NoiseStream`][] of it.

    ``seed`` is from 0 to 2^63 - 1, or ``ValueError``; for ``weights`` see [`NoiseStream`][].
    """

    seed: int = 0
    weights: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, MAX_SEED)
        self._white: dict[tuple[object, ...], dict[CandidateKey, Tensor]] = {}

    def stream(
        self,
        places: Sequence[Place],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> NoiseStream:
        """Noise of a batch; it shares the white noise of adjacent slices with the batch before of its shape."""
        keys = [CandidateKey(self.seed, *place) for place in places]
        size = (*shape, str(device))
        known = self._white.get(size, {})
        stream = NoiseStream(keys, shape, device, self.weights, known)
        self._white[size] = stream.white  # filled by its first draw
        return stream
