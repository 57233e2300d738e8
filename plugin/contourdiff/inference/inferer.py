# SPDX-License-Identifier: Apache-2.0
"""Translate volumes of contours: the inferer, and the two painters that ship."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from monai.data import decollate_batch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from contourdiff.data.nifti_names import case_of
from contourdiff.inference.denoiser import CascadeDenoiser, Denoiser
from contourdiff.inference.execution import Execution
from contourdiff.inference.progress import RunProgress, run_progress
from contourdiff.inference.volume_state import VolumeResult, VolumeState
from contourdiff.limits import MAX_SEED, check_flag, check_number, check_whole
from contourdiff.networks import size_divisor_of
from contourdiff.sampling.candidate_pool import CandidatePool
from contourdiff.sampling.neighbor_guided import GuidedVolume, guided_slices
from contourdiff.sampling.noise import CandidateNoise, correlation_weights
from contourdiff.sampling.sampler import Sampler
from contourdiff.sampling.selection import Choice, SelectionRules, choose


class PaintedSlice(NamedTuple):
    """A slice of a volume that a painter has finished.

    ``image (H, W)`` is the candidate that was taken, in gray levels in [0, 255] and as large as a slice of
    ``volume.framed``; ``candidates (N, H, W)`` are all of the slice, where there is a choice among them.
    """

    volume: VolumeState
    choice: Choice
    image: Tensor
    candidates: Tensor | None = None


class Painter(ABC):
    """A method of translation. It needs to know nothing of MONAI, files, orientation or progress."""

    frame_multiple: int = (
        1  # height and width of a frame are multiples of this, and of what the network requires
    )
    max_candidates: int = 1  # that a slice may have

    def contours_of(self, volume: Tensor) -> Tensor:
        """Contours of what the inferer is given, ``(1, H, W, D)`` both; by default contours are given.

        They decide which slices are painted, and where the frame lies; ``VolumeState.framed`` shows what is given.
        """
        return volume

    @abstractmethod
    def paint(self, volumes: Sequence[VolumeState], network: nn.Module) -> Iterator[PaintedSlice]:
        """Paint each slice that has a contour once, those of a volume in ascending order.

        Sets ``network_calls`` and ``batch_size`` of each volume.
        """


@dataclass(eq=False)
class VolumeInferer(Inferer):
    """Translate volumes of contours to gray levels: ``(B, 1, H, W, D) -> (B, 1, H, W, D)``, a MONAI ``Inferer``.

    Slices without a contour, and everything outside the frame, stay 0.

    Args:
        painter: the method, such as [`IndependentCandidates`][].
        slice_axis: this and the next are as for [`contourdiff.inference.volume_state.VolumeState`][].
        margin_px: of the frame.
        keep_spread: costs one more volume on the model's grid.
        progress: show a bar that counts slices, or the progress of the run that the volumes belong to.

    Raises ``ValueError`` for a value out of range, or a spread of a single candidate a slice.
    """

    painter: Painter
    slice_axis: int = 0
    margin_px: int = 8
    keep_spread: bool = False
    progress: bool | RunProgress = True

    def __post_init__(self) -> None:
        super().__init__()
        check_whole("slice_axis", self.slice_axis, 0, 2)
        check_whole("margin_px", self.margin_px, 0, 4096)
        check_flag("keep_spread", self.keep_spread)
        if self.keep_spread and self.painter.max_candidates < 2:
            raise ValueError(
                "an uncertainty map requires 2 candidates a slice or more, got 1 from "
                f"{type(self.painter).__name__}; raise candidates or switch the map off"
            )

    def __call__(  # type: ignore[override]  # MONAI calls the network any callable
        self,
        inputs: Tensor | Sequence[Tensor],
        network: nn.Module,
        *args: Any,
        class_labels: Sequence[int | None] | Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Gray levels as the inputs were given: a tensor for a batch, a list for a sequence. See [`translate`][]."""
        results = self.translate(inputs, network, class_labels)
        volumes = [result.gray_levels for result in results]
        if not isinstance(inputs, Tensor):
            return volumes
        batch = torch.stack([volume.as_subclass(Tensor) for volume in volumes])
        return convert_to_dst_type(batch, inputs, dtype=torch.float32)[0]

    @torch.no_grad()
    def translate(
        self,
        inputs: Tensor | Sequence[Tensor],
        network: nn.Module,
        class_labels: Sequence[int | None] | Tensor | None = None,
        names: Sequence[str] | None = None,
    ) -> list[VolumeResult]:
        """Gray levels and choices of each volume.

        Args:
            inputs: contours of 0 and 1, or what the painter's ``contours_of`` takes: a batch ``(B, 1, H, W, D)``, or
                volumes ``(1, H, W, D)`` that differ in size. A MetaTensor's ``filename_or_obj`` names the case.
            network: called by the painter; its ``size_divisor``, if any, is what a frame is padded to.
            class_labels: of each volume, or ``(B,)``, see [`contourdiff.inference.volume_state.VolumeState`][].
            names: what the progress calls each volume; by default its case.

        Raises ``ValueError`` for another shape, or another number of labels or names than volumes.
        """
        inputs = split_batch(inputs)
        if class_labels is None:
            class_labels = [None] * len(inputs)
        if names is None:
            names = [case_of_volume(volume) for volume in inputs]
        if not len(class_labels) == len(names) == len(inputs):
            raise ValueError(
                f"expected a class label and a name for each of {len(inputs)} volumes, "
                f"got {len(class_labels)} labels and {len(names)} names"
            )
        multiple = math.lcm(size_divisor_of(network), self.painter.frame_multiple)
        volumes = []
        for image, class_label in zip(inputs, class_labels, strict=True):
            label = None if class_label is None else int(class_label)
            volume = VolumeState(
                self.painter.contours_of(image),
                case_of_volume(image),
                slice_axis=self.slice_axis,
                multiple=multiple,
                margin_px=self.margin_px,
                keep_spread=self.keep_spread,
                image=image,
                class_label=label,
            )
            volumes.append(volume)
        with self._counted(names, volumes) as progress:
            slices = sum(len(volume.indices) for volume in volumes)
            progress.begin(names, slices)
            for painted in self.painter.paint(volumes, network):
                painted.volume.put(painted.choice, painted.image, painted.candidates)
                progress.update()
        return [volume.result() for volume in volumes]

    def _counted(
        self, names: Sequence[str], volumes: Sequence[VolumeState]
    ) -> AbstractContextManager[RunProgress]:
        """Progress of the run that these volumes belong to, or of them alone."""
        if isinstance(self.progress, RunProgress):
            return nullcontext(self.progress)
        slices = [len(volume.contours) for volume in volumes]
        slices_by_name = dict(zip(names, slices, strict=True))
        return run_progress(slices_by_name, self.progress)


@dataclass(eq=False)
class IndependentCandidates(Painter):
    """Draw candidates of each slice, and choose one in slice order (Chen et al., section 2.3 and Algorithm 2).

    A candidate depends on (seed, case, contrast, slice, round, candidate) alone, and only selection depends on the
    neighbor. So the result is the same alone or in a batch, and candidates of many slices share a network call.

    ``seed`` is of the noise; for ``noise_length_mm``, which requires MetaTensors unless it is 0, see
    [`contourdiff.sampling.noise.correlation_weights`][]. ``unconditional``, an ablation, gives the network empty
    contours. Raises ``ValueError`` for a value out of range or of another type.
    """

    sampler: Sampler
    rules: SelectionRules = field(default_factory=SelectionRules)
    execution: Execution = field(default_factory=Execution)
    seed: int = 0
    noise_length_mm: float = 0.0
    unconditional: bool = False

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, MAX_SEED)
        check_number("noise_length_mm", self.noise_length_mm, 0, 1e6)
        check_flag("unconditional", self.unconditional)
        self.max_candidates = self.rules.candidates * self.rules.max_rounds

    def paint(self, volumes: Sequence[VolumeState], network: nn.Module) -> Iterator[PaintedSlice]:
        """Paint volume after volume, slice after slice."""
        denoiser = self.execution.denoiser(network, self.sampler)
        for volume in volumes:
            with self.execution.heap(volume.framed.device):
                yield from self._paint_volume(volume, denoiser)

    def _paint_volume(
        self, volume: VolumeState, denoiser: Denoiser | CascadeDenoiser
    ) -> Iterator[PaintedSlice]:
        noise = CandidateNoise(self.seed, self._noise_weights(volume))
        contours = volume.framed
        if self.unconditional:
            contours = torch.zeros_like(contours)
        if self.execution.batch_size is None and contours.is_cuda and volume.indices:
            denoiser.fit(contours[:1, None])
        calls_before = denoiser.calls
        denoise = partial(denoiser, noise=noise, class_labels=volume.class_label)
        pool = CandidatePool(
            denoise=denoise,
            contours=contours,
            case=volume.noise_case,
            order=volume.indices,
            rules=self.rules,
            batch_size=denoiser.batch_size,
        )
        for choice, image in choose(pool, volume.indices, self.rules):
            candidates = pool.drawn(choice.slice_index, choice.rounds)
            yield PaintedSlice(volume, choice, image, candidates)
            pool.forget(choice.slice_index)
        volume.network_calls = denoiser.calls - calls_before
        volume.batch_size = denoiser.batch_size

    def _noise_weights(self, volume: VolumeState) -> tuple[float, ...]:
        if self.noise_length_mm == 0:
            return (1.0,)
        if volume.slice_distance_mm is None:
            raise ValueError(
                "noise_length_mm requires the slices' distance; expected a MetaTensor, got a plain tensor"
            )
        return correlation_weights(self.noise_length_mm, volume.slice_distance_mm)


@dataclass(eq=False)
class NeighborGuided(Painter):
    """Paint each slice as a single sample, given its neighbor's translation; volumes run side by side.

    The network has three input channels and was trained so, see [`contourdiff.sampling.neighbor_guided`][]. Arguments
    as in [`IndependentCandidates`][]; slices start from independent noise.
    """

    frame_multiple = 32  # so that many volumes share a frame's size

    sampler: Sampler
    rules: SelectionRules = field(default_factory=SelectionRules)
    execution: Execution = field(default_factory=Execution)
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, MAX_SEED)

    def paint(self, volumes: Sequence[VolumeState], network: nn.Module) -> Iterator[PaintedSlice]:
        """Paint all volumes of a contrast at once, a slice of each in a batch."""
        of_contrast: dict[int | None, list[VolumeState]] = {}
        for volume in volumes:
            of_contrast.setdefault(volume.class_label, []).append(volume)
        for together in of_contrast.values():
            with self.execution.heap(together[0].framed.device):
                yield from self._paint_together(together, network)

    def _paint_together(
        self, volumes: Sequence[VolumeState], network: nn.Module
    ) -> Iterator[PaintedSlice]:
        denoiser = self.execution.denoiser(network, self.sampler)
        calls_before = denoiser.calls
        noise = CandidateNoise(self.seed)
        denoise = partial(denoiser, noise=noise, class_labels=volumes[0].class_label)
        guided = []
        for volume in volumes:
            guided.append(GuidedVolume(volume.noise_case, volume.framed, volume.indices))
        slices = guided_slices(guided, denoise, denoiser.batch_size, self.rules)
        for number, choice, image in slices:
            yield PaintedSlice(volumes[number], choice, image)
        for volume in volumes:
            volume.network_calls = denoiser.calls - calls_before
            volume.batch_size = denoiser.batch_size


def split_batch(inputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Volumes ``(1, H, W, D)`` of a batch ``(B, 1, H, W, D)``, or of a sequence; ``ValueError`` for another shape."""
    advice = "add EnsureChannelFirstd to preprocessing"
    if isinstance(inputs, Tensor):
        if inputs.ndim != 5 or inputs.shape[1] != 1:
            raise ValueError(f"inputs must be (B, 1, H, W, D), got {tuple(inputs.shape)}; {advice}")
        return list(decollate_batch(inputs))
    for volume in inputs:
        if volume.ndim != 4 or volume.shape[0] != 1:
            raise ValueError(
                f"each volume must be (1, H, W, D), got {tuple(volume.shape)}; {advice}"
            )
    return list(inputs)


def case_of_volume(volume: Tensor) -> str:
    """Case id of a MetaTensor's file; empty if it has none."""
    meta = getattr(volume, "meta", {})
    return case_of(str(meta.get("filename_or_obj", "")))
