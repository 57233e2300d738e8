# SPDX-License-Identifier: Apache-2.0
"""Noise that belongs to a candidate: the same whether it is drawn alone, in a batch, first or last."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

Item = tuple[str, int, int, int]
"""(case, slice, round, candidate)"""
DenoiseItems = Callable[[torch.Tensor, Sequence[Item]], torch.Tensor]
"""``(conditions (N, C, H, W), items) -> (N, H, W)`` gray levels in [0, 255]"""
CUT_OFF = 4  # standard deviations of the kernel along the slices; beyond lies less than 1e-7 of the variance


class CandidateKey(NamedTuple):
    """All that a candidate's noise depends on."""

    seed: int
    case: str
    slice_index: int
    round: int
    candidate: int


def candidate_generator(key: CandidateKey) -> torch.Generator:
    """CPU generator seeded with the SHA-256 of ``key``: independent streams for keys that differ anywhere."""
    digest = hashlib.sha256(json.dumps(list(key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def correlation_weights(length_mm: float, slice_spacing_mm: float) -> tuple[float, ...]:
    """Weights that turn white noise of a slice and its neighbors into noise that is correlated along the slices.

    A Gaussian of standard deviation ``length_mm / sqrt(2)``, cut off at four of them. Two slices ``d`` mm apart are
    then correlated by ``exp(-d^2 / (2 length_mm^2))``, within 0.02 for a ``length_mm`` of one slice spacing or more,
    and less for a shorter one. There is an odd number of weights, the slice's own in the middle, whose squares sum to
    1; ``(1.0,)`` for length 0. Raises ``ValueError`` for a negative length, or a spacing that is not positive.
    """
    if not 0 <= length_mm < math.inf:
        raise ValueError(
            f"length_mm must be 0 (independent slices) or positive and finite, got {length_mm}"
        )
    if not 0 < slice_spacing_mm < math.inf:
        raise ValueError(f"slice_spacing_mm must be positive and finite, got {slice_spacing_mm}")
    deviation = length_mm / 2**0.5 / slice_spacing_mm
    if deviation == 0:
        return (1.0,)
    reach = math.ceil(CUT_OFF * deviation)
    gaussian = [
        math.exp(-(offset / deviation) * (offset / deviation) / 2)
        for offset in range(-reach, reach + 1)
    ]
    norm = math.fsum(value**2 for value in gaussian) ** 0.5
    return tuple(value / norm for value in gaussian)


@dataclass(eq=False)
class NoiseStream:
    """Standard normal noise for a batch of candidates, each from its own generator.

    With more than one weight, the first noise of slice ``s`` is the sum over offsets ``j`` of ``weights[j]`` times the
    white noise whose key names slice ``s + j`` and is the same otherwise. That is a stationary Gaussian process along
    the slices: white noise goes on beyond the first slice and the last, so their variance is 1 too. Later noise, which
    a solver with ``eta > 0`` adds at each step, is each candidate's own white noise, independent from slice to slice.

    Args:
        keys: one key for each item of the batch.
        shape: shape of one item, ``(1, H, W)``.
        device: of the result; noise is drawn on the CPU so that every device sees the same.
        weights: of the white noise of a slice and its neighbors, from [`correlation_weights`][].
        known: ``first`` of another stream of this shape and device: adjacent slices share most of it.

    Attributes:
        first: white noise of the first draw, by its key; empty before.

    Raises ``ValueError`` for an even number of weights, or squares of them that do not sum to 1.
    """

    keys: Sequence[CandidateKey]
    shape: Sequence[int]
    device: torch.device | str = "cpu"
    weights: Sequence[float] = (1.0,)
    known: Mapping[CandidateKey, torch.Tensor] = field(default_factory=dict)
    first: dict[CandidateKey, torch.Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        squares = math.fsum(weight**2 for weight in self.weights)
        if len(self.weights) % 2 == 0 or not math.isclose(squares, 1, abs_tol=1e-6):
            raise ValueError(
                "weights must be odd in number and their squares sum to 1, as those of correlation_weights do, "
                f"got {tuple(self.weights)}"
            )
        self._generators: dict[CandidateKey, torch.Generator] = {}

    def draw(self) -> torch.Tensor:
        """Next noise of every candidate: ``(B, 1, H, W)`` float32."""
        if not self.first:
            return self._draw_first()
        if not self._generators:
            self._generators = {key: candidate_generator(key) for key in self.keys}
            for generator in self._generators.values():
                torch.randn(self.shape, generator=generator)  # the first draw, which is past
        drawn = {
            key: torch.randn(self.shape, generator=generator)
            for key, generator in self._generators.items()
        }
        return torch.stack([drawn[key] for key in self.keys]).to(self.device)

    def _draw_first(self) -> torch.Tensor:
        """Blend white noise on the device, in one order; product and sum apart, as a fused one rounds differently."""
        reach = len(self.weights) // 2
        sources = [
            [key._replace(slice_index=key.slice_index + j) for j in range(-reach, reach + 1)]
            for key in self.keys
        ]
        white_keys = list(dict.fromkeys(key for row in sources for key in row))
        if unknown := [key for key in white_keys if key not in self.known]:
            drawn = torch.stack(
                [torch.randn(self.shape, generator=candidate_generator(key)) for key in unknown]
            )
            self.first.update(zip(unknown, drawn.to(self.device), strict=True))
        self.first = {
            key: self.first[key] if key in self.first else self.known[key] for key in white_keys
        }
        places = {key: place for place, key in enumerate(white_keys)}
        index = torch.tensor([[places[key] for key in row] for row in sources], device=self.device)
        white = torch.stack(list(self.first.values()))
        noise = self.weights[0] * white[index[:, 0]]
        for offset, weight in enumerate(self.weights[1:], start=1):
            noise = noise + weight * white[index[:, offset]]
        return noise
