# SPDX-License-Identifier: Apache-2.0
"""Translation's socket: a volume of contours goes in, a volume of gray levels comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor, decollate_batch
from monai.inferers import Inferer
from monai.networks.schedulers import Scheduler
from monai.utils import convert_to_dst_type
from torch import nn
from tqdm import tqdm

from contourdiff.data.cases import case_of
from contourdiff.inference.allocator import keep_freed_memory
from contourdiff.inference.denoiser import Accelerator, Denoiser
from contourdiff.inference.volume_state import VolumeResult, VolumeState
from contourdiff.sampling.candidate_pool import CandidatePool
from contourdiff.sampling.neighbor_guided import Walk, guided
from contourdiff.sampling.noise import kernel_weights
from contourdiff.sampling.selection import SelectionRules, choose, walk_order

CPU_BATCH_SIZE = 8
WALK_STARTS = ("first", "fullest")
GUIDED_MULTIPLE = 32
"""Frames of neighbor-guided translation are padded to multiples of this, so that many volumes share a frame's size."""


class ContourTranslationInferer(Inferer):
    """Translate volumes of contours, ``(B, 1, H, W, D) -> (B, 1, H, W, D)`` gray levels in [0, 255].

    A drop-in for the ``inferer`` of a ``SupervisedEvaluator``. Slices without a contour stay 0 and cost no network
    call. All others are denoised in batches of exactly ``batch_size`` candidates, across slices, and chosen in slice
    order by :func:`contourdiff.sampling.selection.choose`. A candidate depends on (seed, case, slice, round, candidate) alone.

    Args:
        scheduler: noise scheduler of the training: its ``alphas_cumprod`` and ``prediction_type`` are used.
        slice_axis: spatial axis along which the slices are stacked.
        rules: rules of the selection; ``None`` takes the paper's for the lumbar spine.
        solver: ``"ddim"``, ``"dpm_solver"``, or ``"ddpm"`` for the paper's ancestral sampler, which ignores the next
            two.
        num_inference_steps: network calls for a candidate.
        eta: DDIM's noise, 0 for none.
        batch_size: candidates a network call; ``None`` takes 8 on a CPU, and on a CUDA device what fits into its free
            memory. Halved, and said so in the log, when the device runs out of memory.
            Results are bit-identical at the same batch size, and differ by rounding between two.
        margin_px: the network sees the box around all contours of the volume, this much wider on each side where the
            volume has room, and padded to the multiple that the network asks for. Outside the box the result is 0.
        seed: seed of the noise.
        progress: show a bar that counts slices.
        keep_spread: record the spread of each slice's candidates; costs one more volume on the model's grid.
        unconditional: the ablation: the network is given empty contours; which slices are translated, and where, is
            still decided by the contours.
        neighbor_guided: translate each slice as a single sample, given its neighbor's translation; wants a network
            with three input channels that was trained so. Only where a run of slices starts is a candidate chosen.
        walk_start: ``"first"`` walks from the first slice to the last; ``"fullest"`` from the slice whose contours
            cover the largest box, to both ends.
        noise_length_mm: the starting noise of two slices d mm apart is correlated by exp(-d^2 / (2 length^2));
            0 for independent noise. Wants volumes that are MetaTensors. Neighbor-guided translation does without.
        amp: run the network in bfloat16 where autocast holds it safe.
        acceleration: see :class:`contourdiff.inference.denoiser.Denoiser`.
        keep_freed_memory: on a CPU, see :func:`contourdiff.inference.allocator.keep_freed_memory`; concerns the whole process.
        on_volume: called with a :class:`VolumeResult` after each volume.

    Raises:
        ValueError: for an unknown solver, acceleration or start of the walk, a batch size below 1, a spread of what is
            a single candidate a slice.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        slice_axis: int = 0,
        rules: SelectionRules | None = None,
        solver: str = "ddim",
        num_inference_steps: int = 50,
        eta: float = 0.0,
        batch_size: int | None = 8,
        margin_px: int = 8,
        seed: int = 0,
        progress: bool = True,
        keep_spread: bool = False,
        unconditional: bool = False,
        neighbor_guided: bool = False,
        walk_start: str = "first",
        noise_length_mm: float = 0.0,
        amp: bool = False,
        acceleration: str | None = None,
        keep_freed_memory: bool = False,
        on_volume: Callable[[VolumeResult], None] | None = None,
    ) -> None:
        super().__init__()
        if walk_start not in WALK_STARTS:
            raise ValueError(f"walk_start must be one of {WALK_STARTS}, got {walk_start!r}")
        if neighbor_guided and keep_spread:
            raise ValueError(
                "neighbor-guided translation draws a single candidate a slice, which has no spread; expected no "
                "uncertainty map; switch it off"
            )
        self.scheduler = scheduler
        self.slice_axis = slice_axis
        self.rules = SelectionRules() if rules is None else rules
        if keep_spread:
            check_spread(self.rules)
        kernel_weights(noise_length_mm, 1.0)
        self.solver = solver
        self.num_inference_steps = num_inference_steps
        self.eta = eta
        self.batch_size = batch_size
        self.margin_px = margin_px
        self.seed = seed
        self.progress = progress
        self.keep_spread = keep_spread
        self.unconditional = unconditional
        self.neighbor_guided = neighbor_guided
        self.walk_start = walk_start
        self.noise_length_mm = noise_length_mm
        self.amp = amp
        self._accelerator = Accelerator(acceleration)
        self.keep_freed_memory = keep_freed_memory
        self.on_volume = on_volume
        self.denoiser(nn.Identity())  # sees to its own arguments before any work

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor | Sequence[torch.Tensor], network: nn.Module, *args: Any, **kwargs: Any
    ) -> Any:
        """Translate contours of 0 and 1; the case is taken from each MetaTensor's ``filename_or_obj``.

        Args:
            inputs: a batch ``(B, 1, H, W, D)``, or a sequence of volumes ``(1, H, W, D)`` that differ in size.
            network: denoises; see :class:`contourdiff.inference.denoiser.Denoiser`.
            args: as given by evaluators, not used.
            kwargs: as given by evaluators, not used.

        Returns:
            Gray levels, as the inputs were given: a tensor for a batch, a list for a sequence.
        """
        volumes = _volumes(inputs)
        if self.keep_freed_memory and any(volume.device.type == "cpu" for volume in volumes):
            keep_freed_memory()
        scans = [self._scan(volume[0], network) for volume in volumes]
        if self.neighbor_guided:
            self._guided(scans, network)
        else:
            for scan in scans:
                self._selected(scan, network)
        made = [scan.result.moveaxis(0, self.slice_axis)[None] for scan in scans]
        if isinstance(inputs, torch.Tensor):
            return convert_to_dst_type(torch.stack(made), inputs, dtype=torch.float32)[0]
        pairs = zip(made, volumes, strict=True)
        return [convert_to_dst_type(one, volume, dtype=torch.float32)[0] for one, volume in pairs]

    def denoiser(self, network: nn.Module, slice_distance_mm: float = 1.0) -> Denoiser:
        """Engine with this inferer's settings, for volumes whose slices are ``slice_distance_mm`` apart."""
        return Denoiser(
            network,
            self.scheduler,
            solver=self.solver,
            num_inference_steps=self.num_inference_steps,
            eta=self.eta,
            batch_size=CPU_BATCH_SIZE if self.batch_size is None else self.batch_size,
            seed=self.seed,
            noise_weights=kernel_weights(self.noise_length_mm, slice_distance_mm),
            amp=self.amp,
            accelerator=self._accelerator,
        )

    def _scan(self, volume: torch.Tensor, network: nn.Module) -> VolumeState:
        if self.noise_length_mm and not self.neighbor_guided and not isinstance(volume, MetaTensor):
            raise ValueError("noise_length_mm wants the slices' distance; expected a MetaTensor, got a plain tensor")
        distance_mm = float(volume.pixdim[self.slice_axis]) if isinstance(volume, MetaTensor) else 1.0
        divisor = getattr(network, "size_divisor", 1)
        multiple = math.lcm(divisor, GUIDED_MULTIPLE) if self.neighbor_guided else divisor
        contours = torch.as_tensor(volume).as_subclass(torch.Tensor).moveaxis(self.slice_axis, 0).float()
        return VolumeState(contours, _case_of(volume), distance_mm, multiple, self.margin_px, self.keep_spread)

    def _foreground(self, scan: VolumeState) -> dict[int, float] | None:
        return scan.foreground() if self.walk_start == "fullest" else None

    def _shown(self, scan: VolumeState) -> torch.Tensor:
        """Contours that the network is given."""
        return torch.zeros_like(scan.framed) if self.unconditional else scan.framed

    def _selected(self, scan: VolumeState, network: nn.Module) -> None:
        """Independent candidates, denoised across slices, and one walk that chooses."""
        denoiser = self.denoiser(network, scan.distance_mm)
        if self.batch_size is None and scan.framed.is_cuda and scan.indices:
            denoiser.fit(scan.framed[:1, None])
        foreground = self._foreground(scan)
        order = [index for index, _ in walk_order(scan.indices, foreground)]
        drawer = CandidatePool(
            denoiser,
            self._shown(scan),
            scan.case,
            order,
            self.rules.candidates,
            self.rules.max_rounds,
            denoiser.batch_size,
        )
        walk = choose(drawer, scan.indices, self.rules, foreground)
        for choice, image in tqdm(walk, scan.case, total=len(order), unit="slice", disable=not self.progress):
            scan.put(choice, image, drawer.drawn(choice.slice_index))
            drawer.forget(choice.slice_index)
        if self.on_volume is not None:
            self.on_volume(scan.record(denoiser.calls, denoiser.batch_size, self.slice_axis))

    def _guided(self, scans: Sequence[VolumeState], network: nn.Module) -> None:
        """Each slice a single sample, given its neighbor's translation; all volumes walk side by side."""
        denoiser = self.denoiser(network)
        walks = [Walk(scan.case, self._shown(scan), walk_order(scan.indices, self._foreground(scan))) for scan in scans]
        steps = guided(walks, denoiser, denoiser.batch_size, self.rules)
        total = sum(len(walk.order) for walk in walks)
        name = ", ".join(scan.case for scan in scans)
        for number, choice, image in tqdm(steps, name, total=total, unit="slice", disable=not self.progress):
            scans[number].put(choice, image)
        if self.on_volume is not None:
            for scan in scans:
                self.on_volume(scan.record(denoiser.calls, denoiser.batch_size, self.slice_axis))


def check_spread(rules: SelectionRules) -> None:
    """See that the rules can draw more than one candidate a slice, without which there is no spread.

    Raises:
        ValueError: if they cannot.
    """
    if rules.candidates * rules.max_rounds == 1:
        raise ValueError(
            "an uncertainty map wants 2 candidates a slice or more, got candidates 1 and max_rounds 1; "
            "raise candidates or switch the map off"
        )


def _volumes(inputs: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each volume ``(1, H, W, D)`` of a batch or a sequence."""
    if isinstance(inputs, torch.Tensor):
        if inputs.ndim != 5 or inputs.shape[1] != 1:
            raise ValueError(
                f"inputs must be (B, 1, H, W, D), got {tuple(inputs.shape)}; add EnsureChannelFirstd to preprocessing"
            )
        return list(decollate_batch(inputs))
    if unfit := [tuple(volume.shape) for volume in inputs if volume.ndim != 4 or volume.shape[0] != 1]:
        raise ValueError(f"each volume must be (1, H, W, D), got {unfit[0]}; add EnsureChannelFirstd to preprocessing")
    return list(inputs)


def _case_of(volume: torch.Tensor) -> str:
    name = volume.meta.get("filename_or_obj", "") if isinstance(volume, MetaTensor) else ""
    return case_of(str(name)) if name else ""
