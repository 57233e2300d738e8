# SPDX-License-Identifier: Apache-2.0
"""Noise that belongs to a candidate: the same whether it is drawn alone, in a batch, first or last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import torch


class CandidateKey(NamedTuple):
    """What a candidate's noise depends on, and all that it depends on."""

    seed: int
    case: str
    slice_index: int
    round: int
    candidate: int


def candidate_generator(key: CandidateKey) -> torch.Generator:
    """CPU generator seeded with the SHA-256 of ``key``: independent streams for keys that differ anywhere."""
    digest = hashlib.sha256(json.dumps(list(key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class NoiseStream:
    """Standard normal noise for a batch of candidates, each from its own generator.

    Args:
        keys: one key for each item of the batch.
        shape: shape of one item, ``(1, H, W)``.
        device: where the noise is wanted; it is drawn on the CPU so that every device sees the same.
    """

    def __init__(self, keys: Sequence[CandidateKey], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._generators = [candidate_generator(key) for key in keys]
        self._shape = tuple(shape)
        self._device = device

    def draw(self) -> torch.Tensor:
        """Next noise of every candidate: ``(B, 1, H, W)`` float32."""
        noise = torch.stack([torch.randn(self._shape, generator=generator) for generator in self._generators])
        return noise.to(self._device)
