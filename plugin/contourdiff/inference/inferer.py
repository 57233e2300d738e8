# SPDX-License-Identifier: Apache-2.0
"""Translate volumes of contours: the inferer, and the two painters that ship.

The way of a volume:

    contours (1, H, W, D)
      1. VolumeState        its slices, cut to the box around all contours
      2. Painter.paint      gray levels of every slice that has a contour     <- all that methods differ in
      3. VolumeState.put    each painted slice back in its place
      4. VolumeResult       gray levels on the grid of the input, with the choice made for each slice

A new method is a [`Painter`][]. It needs to know nothing of MONAI, files, orientation or progress.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor, decollate_batch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from contourdiff.data.nifti_names import case_of
from contourdiff.inference.denoiser import CascadeDenoiser, Denoiser
from contourdiff.inference.execution import Execution
from contourdiff.inference.progress import RunProgress, run_progress
from contourdiff.inference.volume_state import VolumeResult, VolumeState
from contourdiff.limits import check_flag, check_number, check_whole
from contourdiff.networks import size_divisor_of
from contourdiff.sampling.candidate_pool import CandidatePool
from contourdiff.sampling.neighbor_guided import GuidedVolume, guided_slices
from contourdiff.sampling.noise import CandidateNoise, correlation_weights
from contourdiff.sampling.sampler import Sampler
from contourdiff.sampling.selection import Choice, SelectionRules, choose


class PaintedSlice(NamedTuple):
    """A slice that a painter has finished.

    Attributes:
        volume: the volume that the slice belongs to.
        choice: the candidate that was taken, and why.
        image: that candidate, ``(H, W)`` gray levels in [0, 255], as large as a slice of ``volume.framed``.
        candidates: all candidates of the slice, ``(N, H, W)``; ``None`` where spread and the distances of single
            candidates have no meaning.
    """

    volume: VolumeState
    choice: Choice
    image: Tensor
    candidates: Tensor | None = None


class Painter(ABC):
    """A method of translation, which paints the slices of volumes.

    Attributes:
        frame_multiple: height and width of a frame are multiples of this, and of what the network requires.
        max_candidates: the most candidates that a slice may have.
    """

    frame_multiple: int = 1
    max_candidates: int = 1

    def contours_of(self, volume: Tensor) -> Tensor:
        """Contours of a volume as it is handed to the inferer, ``(1, H, W, D) -> (1, H, W, D)``.

        By default it is the contours. A method that sees the image returns the contours of that image: they decide
        which slices are painted and where the frame lies, while ``framed`` shows the image.
        """
        return volume

    @abstractmethod
    def paint(self, volumes: Sequence[VolumeState], network: nn.Module) -> Iterator[PaintedSlice]:
        """Paint every slice of ``volumes`` that has a contour, once; those of one volume in ascending order.

        Sets ``network_calls`` and ``batch_size`` of each volume.
        """


@dataclass(eq=False)
class VolumeInferer(Inferer):
    """Translate volumes of contours to gray levels: ``(B, 1, H, W, D) -> (B, 1, H, W, D)``, a MONAI ``Inferer``.

    Slices without a contour, and everything outside the frame, stay 0.

    Args:
        painter: the method, such as [`IndependentCandidates`][].
        slice_axis: spatial axis along which the slices are stacked: 0, 1 or 2.
        margin_px: the frame is the box around all contours of a volume with this margin on each side where the volume
            allows it, padded to the multiple that network and painter require.
        keep_spread: keep the spread of each slice's candidates; costs one more volume on the model's grid.
        progress: show a bar that counts slices, or the progress of the run that the volumes belong to.

    Raises:
        ValueError: for a value out of range, or a spread of a single candidate a slice.

    Examples:
        >>> import torch
        >>> from monai.networks.schedulers import DDPMScheduler
        >>> from contourdiff.inference import IndependentCandidates, VolumeInferer
        >>> from contourdiff.networks import ContourUNet
        >>> from contourdiff.sampling import Sampler
        >>> network = ContourUNet(patch_size=2, channels=(32, 32), attention_levels=(False, False), num_res_blocks=1)
        >>> painter = IndependentCandidates(Sampler(DDPMScheduler(), num_inference_steps=2))
        >>> contours = torch.zeros(1, 1, 3, 20, 24)
        >>> contours[..., 1, 4:12, 5] = 1  # of three slices, one has a contour
        >>> mr = VolumeInferer(painter, progress=False)(contours, network.eval())
        >>> mr.shape, [bool(image.any()) for image in mr[0, 0]]
        (torch.Size([1, 1, 3, 20, 24]), [False, True, False])
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
        class_labels: Sequence[int | None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Gray levels as the inputs were given: a tensor for a batch, a list for a sequence. See [`translate`][]."""
        volumes = [result.gray_levels for result in self.translate(inputs, network, class_labels)]
        if not isinstance(inputs, Tensor):
            return volumes
        batch = torch.stack([volume.as_subclass(Tensor) for volume in volumes])
        return convert_to_dst_type(batch, inputs, dtype=torch.float32)[0]

    @torch.no_grad()
    def translate(
        self,
        inputs: Tensor | Sequence[Tensor],
        network: nn.Module,
        class_labels: Sequence[int | None] | None = None,
        names: Sequence[str] | None = None,
    ) -> list[VolumeResult]:
        """Gray levels and choices of each volume.

        Args:
            inputs: contours of 0 and 1, or what the painter's ``contours_of`` takes: a batch ``(B, 1, H, W, D)``, or
                volumes ``(1, H, W, D)`` that differ in size. A MetaTensor's ``filename_or_obj`` names the case.
            network: called by the painter; its ``size_divisor``, if any, is what a frame is padded to.
            class_labels: contrast of each volume, a position in the network's ``contrasts``; ``None`` for the
                network's own.
            names: what the progress calls each volume; by default its case.

        Raises:
            ValueError: for another shape, or another number of labels or names than volumes.
        """
        volumes = split_batch(inputs)
        labels = class_labels if class_labels is not None else [None] * len(volumes)
        if len(labels) != len(volumes) or (names is not None and len(names) != len(volumes)):
            raise ValueError(
                f"expected a class label and a name for each of {len(volumes)} volumes, "
                f"got {class_labels} and {names}"
            )
        multiple = math.lcm(size_divisor_of(network), self.painter.frame_multiple)
        states = []
        for volume, label in zip(volumes, labels, strict=True):
            states.append(self._state(volume, label, multiple))
        names = names or [state.case for state in states]
        with self._counted(names, states) as progress:
            progress.begin(names, sum(len(state.indices) for state in states))
            for painted in self.painter.paint(states, network):
                painted.volume.put(painted.choice, painted.image, painted.candidates)
                progress.update()
        return [state.result() for state in states]

    def _state(self, volume: Tensor, class_label: int | None, multiple: int) -> VolumeState:
        return VolumeState(
            self.painter.contours_of(volume),
            case_of_volume(volume),
            slice_axis=self.slice_axis,
            multiple=multiple,
            margin_px=self.margin_px,
            keep_spread=self.keep_spread,
            image=volume,
            class_label=None if class_label is None else int(class_label),
        )

    def _counted(
        self, names: Sequence[str], states: Sequence[VolumeState]
    ) -> AbstractContextManager[RunProgress]:
        """Progress of the run that these volumes belong to, or of them alone."""
        if isinstance(self.progress, RunProgress):
            return nullcontext(self.progress)
        counts = [len(state.contours) for state in states]
        return run_progress(dict(zip(names, counts, strict=True)), self.progress)


@dataclass(eq=False)
class IndependentCandidates(Painter):
    """Draw candidates of each slice, and choose one in slice order (Chen et al. 2024, section 2.3 and Algorithm 2).

    Args:
        sampler: solver, steps and training schedule.
        rules: when a candidate is accepted, and how many are drawn; by default the paper's for the lumbar spine.
        execution: batch size, precision and acceleration.
        seed: seed of the noise; each seed gives a different MR of the same anatomy.
        noise_length_mm: the starting noise of two slices d mm apart is correlated by exp(-d^2 / (2 length^2));
            0 for independent noise. Requires volumes that are MetaTensors.
        unconditional: the ablation: give the network empty contours; the contours still decide which slices are
            painted, and where.

    Raises:
        ValueError: for a value out of range or of another type.

    Notes:
        A candidate depends on (seed, case, contrast, slice, round, candidate) alone, and only selection depends on the
        neighbor. So the result is the same alone or in a batch, and candidates of many slices share a network call.

    References:
        Chen et al., arXiv 2403.10786.
    """

    sampler: Sampler
    rules: SelectionRules = field(default_factory=SelectionRules)
    execution: Execution = field(default_factory=Execution)
    seed: int = 0
    noise_length_mm: float = 0.0
    unconditional: bool = False

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, 2**63 - 1)
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
        """Candidates, denoised across slices, and one pass in slice order that chooses."""
        noise = CandidateNoise(self.seed, self._noise_weights(volume))
        contours = torch.zeros_like(volume.framed) if self.unconditional else volume.framed
        if volume.indices:
            self.execution.fit(denoiser, contours[:1, None], volume.class_label)
        calls_before = denoiser.calls
        pool = CandidatePool(
            partial(denoiser, noise=noise, class_labels=volume.class_label),
            contours,
            volume.noise_case,
            volume.indices,
            self.rules,
            denoiser.batch_size,
        )
        for choice, image in choose(pool, volume.indices, self.rules):
            yield PaintedSlice(volume, choice, image, pool.drawn(choice.slice_index))
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

    The network has three input channels and was trained so, see [`contourdiff.sampling.neighbor_guided`][]. Only where
    a run of slices starts is a candidate chosen. Slices start from independent noise. Arguments as in
    [`IndependentCandidates`][].
    """

    frame_multiple = 32  # so that many volumes share a frame's size

    sampler: Sampler
    rules: SelectionRules = field(default_factory=SelectionRules)
    execution: Execution = field(default_factory=Execution)
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, 2**63 - 1)

    def paint(self, volumes: Sequence[VolumeState], network: nn.Module) -> Iterator[PaintedSlice]:
        """Paint all volumes of a contrast at once, a slice of each in a batch."""
        denoiser = self.execution.denoiser(network, self.sampler)
        noise = CandidateNoise(self.seed)
        for label in dict.fromkeys(volume.class_label for volume in volumes):
            together = [volume for volume in volumes if volume.class_label == label]
            guided = []
            for volume in together:
                guided.append(GuidedVolume(volume.noise_case, volume.framed, volume.indices))
            denoise = partial(denoiser, noise=noise, class_labels=label)
            calls_before = denoiser.calls
            with self.execution.heap(together[0].framed.device):
                slices = guided_slices(guided, denoise, denoiser.batch_size, self.rules)
                for number, choice, image in slices:
                    yield PaintedSlice(together[number], choice, image)
            for volume in together:
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
    if not isinstance(volume, MetaTensor):
        return ""
    return case_of(str(volume.meta.get("filename_or_obj", "")))
