# SPDX-License-Identifier: Apache-2.0
"""Translate volumes of CT with a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from monai.config import NdarrayOrTensor
from torch import Tensor, nn

from contourdiff.inference.execution import CPU_BATCH_SIZE, Execution
from contourdiff.inference.inferer import PaintedSlice, Painter
from contourdiff.inference.volume_state import VolumeState
from contourdiff.sampling.intensity import to_gray_levels, to_model_range
from contourdiff.sampling.selection import SelectionRules, choose
from contourdiff_lab.baselines.generators import image_of

ONLY_ONE = SelectionRules(
    candidates=1, max_rounds=1, mean_threshold=float("inf"), distance_threshold=float("inf")
)


@dataclass(eq=False)
class GeneratorPainter(Painter):
    """Paint every slice of a CT with a generator: a single candidate, which is always the same.

    The volumes are CT in gray levels [0, 255]. As with the other painters, slices without a contour stay 0 and the
    frame lies around the contours, so that contour fidelity can be compared. The generator does not see the contours.

    Args:
        contour: maps gray levels ``(1, H, W, D)`` to contours of 0 and 1 of that shape.
        execution: batch size and precision; without a batch size, 8 slices on any device.
    """

    contour: Callable[[NdarrayOrTensor], Any]
    execution: Execution = field(default_factory=Execution)

    def contours_of(self, volume: Tensor) -> Tensor:
        """Contours of a CT ``(1, H, W, D)``."""
        contours: Tensor = self.contour(volume)
        return contours

    def paint(self, volumes: Sequence[VolumeState], network: nn.Module) -> Iterator[PaintedSlice]:
        """Paint volume after volume, slice after slice."""
        for volume in volumes:
            with self.execution.heap(volume.framed.device):
                images = self._generate(volume, network)

            def draw(slice_index: int, _: int, images: dict[int, Tensor] = images) -> Tensor:
                return images[slice_index][None]

            for choice, image in choose(draw, volume.indices, ONLY_ONE):
                yield PaintedSlice(volume, replace(choice, reason="the only candidate"), image)

    def _generate(self, volume: VolumeState, network: nn.Module) -> dict[int, Tensor]:
        """Gray levels ``(H, W)`` of every slice that has a contour."""
        size = self.execution.batch_size or CPU_BATCH_SIZE
        starts = range(0, len(volume.indices), size)
        images: dict[int, Tensor] = {}
        for start in starts:
            indices = volume.indices[start : start + size]
            batch = self._gray_levels(volume.framed[indices], network)
            images.update(zip(indices, batch, strict=True))
        volume.network_calls = len(starts)
        volume.batch_size = size
        return images

    def _gray_levels(self, slices: Tensor, network: nn.Module) -> Tensor:
        """Gray levels ``(N, H, W)`` of CT -> those of MR."""
        images = to_model_range(slices[:, None])
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.execution.amp):
            output = image_of(network(images))
        return to_gray_levels(output[:, 0].float()).clamp(0, 255)
