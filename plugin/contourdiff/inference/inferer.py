# SPDX-License-Identifier: Apache-2.0
"""Volume inferers: contours in, gray levels out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from monai.data import MetaTensor, decollate_batch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import nn

from contourdiff.data.nifti_names import case_of
from contourdiff.inference.acceleration import Accelerator, retained_heap
from contourdiff.inference.denoiser import CascadeDenoiser, Denoiser, denoiser_of
from contourdiff.inference.progress import RunProgress, run_progress
from contourdiff.inference.volume_state import VolumeResult, VolumeState
from contourdiff.sampling.candidate_pool import CandidatePool
from contourdiff.sampling.neighbor_guided import GuidedVolume, translate_guided
from contourdiff.sampling.noise import correlation_weights
from contourdiff.sampling.sampler import Sampler
from contourdiff.sampling.selection import SelectionRules, choose

CPU_BATCH_SIZE = 8


@dataclass(frozen=True)
class Execution:
    """How the network is run; results differ by rounding alone.

    Args:
        batch_size: candidates a network call; ``None`` takes 8 on a CPU (and for neighbor-guided translation), and on
            a CUDA device what fits into its free memory. Halved when the device runs out of memory.
        amp: run the network in bfloat16 where autocast holds it safe.
        acceleration: see [`contourdiff.inference.acceleration.Accelerator`][].
        retain_heap: on a CPU, see [`contourdiff.inference.acceleration.retained_heap`][]; concerns the process.
    """

    batch_size: int | None = 8
    amp: bool = False
    acceleration: str | None = None
    retain_heap: bool = False

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {self.batch_size}")
        Accelerator(self.acceleration)


@dataclass(eq=False, kw_only=True)
class VolumeInferer(Inferer):
    """What all inferers share: volumes in and out, and how the network is run."""

    frame_multiple = 1  # of the frame's height and width, beside the network's own
    keep_spread = False

    execution: Execution = field(default_factory=Execution)
    slice_axis: int = 0
    margin_px: int = 8
    seed: int = 0
    progress: bool | RunProgress = True

    def __post_init__(self) -> None:
        super().__init__()

    def __call__(  # type: ignore[override]
        self,
        inputs: torch.Tensor | Sequence[torch.Tensor],
        network: nn.Module,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Gray levels as the inputs were given: a tensor for a batch, a list for a sequence. See [`translate`][]."""
        volumes = [result.gray_levels for result in self.translate(inputs, network)]
        if not isinstance(inputs, torch.Tensor):
            return volumes
        plain = [volume.as_subclass(torch.Tensor) for volume in volumes]
        return convert_to_dst_type(torch.stack(plain), inputs, dtype=torch.float32)[0]

    @torch.no_grad()
    def translate(
        self, inputs: torch.Tensor | Sequence[torch.Tensor], network: nn.Module
    ) -> list[VolumeResult]:
        """Gray levels and choices of each volume; the case is taken from its MetaTensor's ``filename_or_obj``.

        ``inputs`` are contours of 0 and 1: a batch ``(B, 1, H, W, D)``, or a sequence of volumes ``(1, H, W, D)`` that
        differ in size. Raises ``ValueError`` for another shape.
        """
        volumes = _volumes(inputs)
        multiple = math.lcm(getattr(network, "size_divisor", 1), self.frame_multiple)
        states = (self._state(volume, multiple) for volume in volumes)
        on_cpu = any(volume.device.type == "cpu" for volume in volumes)
        with self._shown(volumes) as progress, retained_heap(self.execution.retain_heap and on_cpu):
            return self._translate(states, network, progress)

    def _shown(self, volumes: Sequence[torch.Tensor]) -> AbstractContextManager[RunProgress]:
        """Progress of the run that these volumes belong to, or of them alone."""
        if isinstance(self.progress, RunProgress):
            return nullcontext(self.progress)
        return run_progress(
            {case_of_volume(volume): volume.shape[1 + self.slice_axis] for volume in volumes},
            self.progress,
        )

    def _state(self, volume: torch.Tensor, multiple: int) -> VolumeState:
        """A volume before its translation."""
        return VolumeState(
            volume,
            case_of_volume(volume),
            self.slice_axis,
            multiple,
            self.margin_px,
            self.keep_spread,
        )

    @abstractmethod
    def _translate(
        self, states: Iterable[VolumeState], network: nn.Module, progress: RunProgress
    ) -> list[VolumeResult]:
        """Result of each volume."""


@dataclass(eq=False)
class DiffusionVolumeInferer(VolumeInferer):
    """What both diffusion inferers share: one denoiser for each volume, and the rules of the selection."""

    sampler: Sampler
    rules: SelectionRules = field(default_factory=SelectionRules)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._accelerators = tuple(Accelerator(self.execution.acceleration) for _ in range(2))
        self._largest_batch = 2**31  # that the device has had memory for

    def denoiser(
        self, network: nn.Module, noise_weights: Sequence[float] = (1.0,)
    ) -> Denoiser | CascadeDenoiser:
        """Denoiser with this inferer's sampler, execution and seed."""
        return denoiser_of(
            network,
            self.sampler,
            batch_size=min(self.execution.batch_size or CPU_BATCH_SIZE, self._largest_batch),
            seed=self.seed,
            noise_weights=noise_weights,
            amp=self.execution.amp,
            accelerators=self._accelerators,
        )

    def _result(self, state: VolumeState, denoiser: Denoiser | CascadeDenoiser) -> VolumeResult:
        """Result of a translated volume; a batch that was halved stays so for the volumes that follow."""
        if denoiser.halved:
            self._largest_batch = denoiser.batch_size
        return state.result(denoiser.calls, denoiser.batch_size)


@dataclass(eq=False)
class ContourTranslationInferer(DiffusionVolumeInferer):
    """Translate volumes of contours to gray levels in [0, 255]: ``(B, 1, H, W, D) -> (B, 1, H, W, D)``.

    A drop-in for the ``inferer`` of a ``SupervisedEvaluator``. Slices without a contour stay 0 and cost no network
    call. All others are denoised in batches of exactly ``batch_size`` candidates, across slices, and chosen in slice
    order by [`contourdiff.sampling.selection.choose`][].

    Args:
        sampler: solver, steps and training schedule.
        rules: rules of the selection; by default the paper's for the lumbar spine.
        execution: batch size, precision and acceleration.
        slice_axis: spatial axis along which the slices are stacked.
        margin_px: the network sees the box around all contours of the volume, with this margin on each side where the
            volume allows it, padded to the multiple that the network requires. Outside the box the result is 0.
        seed: seed of the noise.
        progress: show a bar that counts slices, or the progress of the run that the volumes belong to.
        noise_length_mm: the starting noise of two slices d mm apart is correlated by exp(-d^2 / (2 length^2));
            0 for independent noise. Requires volumes that are MetaTensors.
        keep_spread: keep the spread of each slice's candidates; costs one more volume on the model's grid.
        unconditional: the ablation: give the network empty contours; the contours still decide which slices are
            translated, and where.

    Raises ``ValueError`` for a negative length, or a spread of a single candidate a slice.

    Notes:
        A candidate depends on (seed, case, slice, round, candidate) alone, and only selection depends on the neighbor.
        So the result is the same alone or in a batch, and candidates of many slices share a network call.

    References:
        Chen et al., arXiv 2403.10786, section 2.3 and Algorithm 2.

    Examples:
        >>> import torch
        >>> from monai.networks.schedulers import DDPMScheduler
        >>> from contourdiff.inference import ContourTranslationInferer
        >>> from contourdiff.networks import ContourUNet
        >>> from contourdiff.sampling import Sampler
        >>> network = ContourUNet(patch_size=2, channels=(32, 32), attention_levels=(False, False), num_res_blocks=1)
        >>> inferer = ContourTranslationInferer(Sampler(DDPMScheduler(), num_inference_steps=2), progress=False)
        >>> contours = torch.zeros(1, 1, 3, 20, 24)
        >>> contours[..., 1, 4:12, 5] = 1
        >>> inferer(contours, network.eval()).shape
        torch.Size([1, 1, 3, 20, 24])
    """

    _: KW_ONLY
    noise_length_mm: float = 0.0
    keep_spread: bool = False
    unconditional: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        correlation_weights(self.noise_length_mm, 1.0)
        if self.keep_spread and self.rules.candidates * self.rules.max_rounds == 1:
            raise ValueError(
                "an uncertainty map requires 2 candidates a slice or more, got candidates 1 and max_rounds 1; "
                "raise candidates or switch the map off"
            )

    def _translate(
        self, states: Iterable[VolumeState], network: nn.Module, progress: RunProgress
    ) -> list[VolumeResult]:
        return [self._translate_volume(state, network, progress) for state in states]

    def _translate_volume(
        self, state: VolumeState, network: nn.Module, progress: RunProgress
    ) -> VolumeResult:
        """Independent candidates, denoised across slices, and one pass in slice order that chooses."""
        denoiser = self.denoiser(network, self._noise_weights(state.volume))
        if self.execution.batch_size is None and state.framed.is_cuda and state.indices:
            denoiser.batch_size = min(denoiser.fit(state.framed[:1, None]), self._largest_batch)
        contours = torch.zeros_like(state.framed) if self.unconditional else state.framed
        pool = CandidatePool(
            denoiser, contours, state.case, state.indices, self.rules, denoiser.batch_size
        )
        progress.begin([state.case], len(state.indices))
        for choice, image in choose(pool, state.indices, self.rules):
            state.put(choice, image, pool.drawn(choice.slice_index))
            pool.forget(choice.slice_index)
            progress.update()
        return self._result(state, denoiser)

    def _noise_weights(self, volume: torch.Tensor) -> tuple[float, ...]:
        if self.noise_length_mm == 0:
            return (1.0,)
        if not isinstance(volume, MetaTensor):
            raise ValueError(
                "noise_length_mm requires the slices' distance; expected a MetaTensor, got a plain tensor"
            )
        return correlation_weights(self.noise_length_mm, float(volume.pixdim[self.slice_axis]))


@dataclass(eq=False)
class NeighborGuidedInferer(DiffusionVolumeInferer):
    """Translate each slice as a single sample, given its neighbor's translation; volumes run side by side.

    The network has three input channels and was trained so, see [`contourdiff.sampling.neighbor_guided`][]. Only where
    a run of slices starts is a candidate chosen. Slices start from independent noise. Arguments as in
    [`ContourTranslationInferer`][].
    """

    frame_multiple = 32  # so that many volumes share a frame's size

    def _translate(
        self, states: Iterable[VolumeState], network: nn.Module, progress: RunProgress
    ) -> list[VolumeResult]:
        states = list(states)
        denoiser = self.denoiser(network)
        guided = [GuidedVolume(state.case, state.framed, state.indices) for state in states]
        progress.begin(
            [state.case for state in states], sum(len(state.indices) for state in states)
        )
        for number, choice, image in translate_guided(
            guided, denoiser, denoiser.batch_size, self.rules
        ):
            states[number].put(choice, image)
            progress.update()
        return [self._result(state, denoiser) for state in states]


def _volumes(inputs: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each volume ``(1, H, W, D)`` of a batch or a sequence."""
    if isinstance(inputs, torch.Tensor):
        if inputs.ndim != 5 or inputs.shape[1] != 1:
            raise ValueError(
                f"inputs must be (B, 1, H, W, D), got {tuple(inputs.shape)}; add EnsureChannelFirstd to preprocessing"
            )
        return list(decollate_batch(inputs))
    if unfit := [
        tuple(volume.shape) for volume in inputs if volume.ndim != 4 or volume.shape[0] != 1
    ]:
        raise ValueError(
            f"each volume must be (1, H, W, D), got {unfit[0]}; add EnsureChannelFirstd to preprocessing"
        )
    return list(inputs)


def case_of_volume(volume: torch.Tensor) -> str:
    """Case id of a MetaTensor's file; empty if it has none."""
    name = volume.meta.get("filename_or_obj", "") if isinstance(volume, MetaTensor) else ""
    return case_of(str(name)) if name else ""
