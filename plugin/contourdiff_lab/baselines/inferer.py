# SPDX-License-Identifier: Apache-2.0
"""Translate volumes of CT with a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from monai.config import NdarrayOrTensor
from torch import Tensor, nn

from contourdiff.inference.inferer import CPU_BATCH_SIZE, VolumeInferer, case_of_volume
from contourdiff.inference.progress import RunProgress
from contourdiff.inference.volume_state import VolumeResult, VolumeState
from contourdiff.sampling.intensity import to_gray_levels, to_model_range
from contourdiff.sampling.selection import SelectionRules, choose
from contourdiff_lab.baselines.generators import image_of

ONLY_ONE = SelectionRules(
    candidates=1, max_rounds=1, mean_threshold=float("inf"), distance_threshold=float("inf")
)


@dataclass(eq=False)
class GeneratorInferer(VolumeInferer):
    """Translate CT in gray levels [0, 255] to MR in gray levels: ``(B, 1, H, W, D) -> (B, 1, H, W, D)``.

    Frame, skipped slices and results are those of [`contourdiff.inference.inferer.ContourTranslationInferer`][], so
    that contour fidelity can be compared: the generator sees the box around all contours of the CT, slices without
    contour stay 0. There is a single candidate for each slice, and always the same one.

    Args:
        contour: maps gray levels ``(1, H, W, D)`` to contours of 0 and 1 of that shape.
    """

    contour: Callable[[NdarrayOrTensor], Any]

    def _state(self, volume: Tensor, multiple: int) -> VolumeState:
        contours = self.contour(volume)
        return VolumeState(
            contours,
            case_of_volume(volume),
            self.slice_axis,
            multiple,
            self.margin_px,
            self.keep_spread,
            volume,
        )

    def _translate(
        self, states: Iterable[VolumeState], network: nn.Module, progress: RunProgress
    ) -> list[VolumeResult]:
        return [self._translate_volume(state, network, progress) for state in states]

    def _translate_volume(
        self, state: VolumeState, network: nn.Module, progress: RunProgress
    ) -> VolumeResult:
        size = self.execution.batch_size or CPU_BATCH_SIZE
        batches = [
            state.indices[start : start + size] for start in range(0, len(state.indices), size)
        ]
        images = [image for batch in batches for image in self._run(state, batch, network)]
        progress.begin([state.case], len(state.indices))
        drawn = dict(zip(state.indices, images, strict=True))
        for choice, image in choose(lambda index, _: drawn[index][None], state.indices, ONLY_ONE):
            state.put(replace(choice, reason="the only candidate"), image)
            progress.update()
        return state.result(len(batches), size)

    def _run(self, state: VolumeState, indices: list[int], network: nn.Module) -> Tensor:
        """Gray levels ``(N, H, W)`` of some slices."""
        images = to_model_range(state.framed[indices][:, None])
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.execution.amp):
            output = image_of(network(images))
        return to_gray_levels(output[:, 0].float()).clamp(0, 255)
