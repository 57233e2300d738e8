# SPDX-License-Identifier: Apache-2.0
"""Translation's socket: a volume of contours goes in, a volume of gray levels comes out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor, decollate_batch
from monai.inferers import Inferer
from monai.networks.schedulers import Scheduler
from monai.utils import convert_to_dst_type
from torch import nn
from torch.nn.functional import pad
from tqdm import tqdm

from contourdiff.datalists import case_of
from contourdiff.noise import CandidateKey, NoiseStream
from contourdiff.selection import Choice, SelectionRules, choose
from contourdiff.solvers import ddim, ddpm

SOLVERS = ("ddim", "ddpm")


class VolumeRecord(NamedTuple):
    """What happened to one volume: a choice for each translated slice, ``None`` for each skipped one.

    All volumes are float32 ``(H, W, D)`` on the model's grid, on the CPU: ``contours``, 0 or 1, that were given;
    ``translation`` in gray levels, 0 outside the ``box`` that the network saw; ``spread``, for each voxel the
    sample standard deviation in gray levels over all candidates that were drawn for its slice. ``spread`` is 0
    where nothing was translated, and NaN where a single candidate was drawn for a slice; it is ``None`` unless the
    inferer was asked for it.
    """

    case: str
    choices: list[Choice | None]
    network_calls: int
    contours: torch.Tensor
    translation: torch.Tensor
    box: tuple[slice, slice, slice]
    spread: torch.Tensor | None = None


class ContourTranslationInferer(Inferer):
    """Translate volumes of contours, ``(B, 1, H, W, D) -> (B, 1, H, W, D)`` gray levels in [0, 255].

    A drop-in for the ``inferer`` of a ``SupervisedEvaluator``. Slices without a contour stay 0 and cost no network
    call. All others are denoised in batches of exactly ``batch_size`` candidates, across slices, and chosen in slice
    order by :func:`contourdiff.selection.choose`. A candidate depends on (seed, case, slice, round, candidate) alone.

    Args:
        scheduler: noise scheduler of the training: its ``alphas_cumprod`` and ``prediction_type`` are used.
        slice_axis: spatial axis along which the slices are stacked.
        rules: rules of the selection; ``None`` takes the paper's for the lumbar spine.
        solver: ``"ddim"``, or ``"ddpm"`` for the paper's ancestral sampler, which ignores the next two.
        num_inference_steps: DDIM steps.
        eta: DDIM's noise, 0 for none.
        batch_size: candidates a network call. Results are bit-identical at the same batch size, and differ by rounding
            between two.
        margin_px: the network sees the box around all contours of the volume, this much wider on each side where the
            volume has room, and padded to the multiple that the network asks for. Outside the box the result is 0.
        seed: seed of the noise.
        progress: show a bar that counts slices.
        keep_spread: record the spread of each slice's candidates; costs one more volume on the model's grid.
        unconditional: the ablation: the network is given empty contours; which slices are translated, and where, is
            still decided by the contours.
        on_volume: called with a :class:`VolumeRecord` after each volume.

    Raises:
        ValueError: for an unknown solver, a batch size below 1, or a spread of what is a single candidate a slice.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        slice_axis: int = 0,
        rules: SelectionRules | None = None,
        solver: str = "ddim",
        num_inference_steps: int = 50,
        eta: float = 0.0,
        batch_size: int = 8,
        margin_px: int = 8,
        seed: int = 0,
        progress: bool = True,
        keep_spread: bool = False,
        unconditional: bool = False,
        on_volume: Callable[[VolumeRecord], None] | None = None,
    ) -> None:
        super().__init__()
        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {SOLVERS}, got {solver!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        self.scheduler = scheduler
        self.slice_axis = slice_axis
        self.rules = SelectionRules() if rules is None else rules
        if keep_spread:
            check_spread(self.rules)
        self.solver = solver
        self.num_inference_steps = num_inference_steps
        self.eta = eta
        self.batch_size = batch_size
        self.margin_px = margin_px
        self.seed = seed
        self.progress = progress
        self.keep_spread = keep_spread
        self.unconditional = unconditional
        self.on_volume = on_volume

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Translate ``inputs``, contours of 0 and 1; the case is taken from the MetaTensor's ``filename_or_obj``."""
        if inputs.ndim != 5 or inputs.shape[1] != 1:
            raise ValueError(
                f"inputs must be (B, 1, H, W, D), got {tuple(inputs.shape)}; add EnsureChannelFirstd to preprocessing"
            )
        volumes = [self._translate(volume[0], _case_of(volume), network) for volume in decollate_batch(inputs)]
        return convert_to_dst_type(torch.stack(volumes)[:, None], inputs, dtype=torch.float32)[0]

    def _translate(self, volume: torch.Tensor, case: str, network: nn.Module) -> torch.Tensor:
        contours = torch.as_tensor(volume).as_subclass(torch.Tensor).moveaxis(self.slice_axis, 0).float()
        indices = torch.nonzero(contours.flatten(1).any(dim=1)).flatten().tolist()
        rows, columns, framed = _frame(contours, getattr(network, "size_divisor", 1), self.margin_px)
        shown = torch.zeros_like(framed) if self.unconditional else framed
        drawer = CandidateDrawer(self._solve, shown, case, indices, self.rules.candidates, self.batch_size, network)
        result = torch.zeros_like(contours)
        spread = torch.zeros_like(contours) if self.keep_spread else None
        choices: list[Choice | None] = [None] * len(contours)
        walk = choose(drawer, indices, self.rules)
        for choice, image in tqdm(walk, case, total=len(indices), unit="slice", disable=not self.progress):
            result[choice.slice_index, rows, columns] = image[: rows.stop - rows.start, : columns.stop - columns.start]
            if spread is not None:
                drawn = drawer.drawn(choice.slice_index)[:, : rows.stop - rows.start, : columns.stop - columns.start]
                spread[choice.slice_index, rows, columns] = drawn.std(dim=0) if len(drawn) > 1 else torch.nan
            choices[choice.slice_index] = choice
            drawer.forget(choice.slice_index)
        if self.on_volume is not None:
            given, made = (volume.moveaxis(0, self.slice_axis).cpu() for volume in (contours, result))
            kept = None if spread is None else spread.moveaxis(0, self.slice_axis).cpu()
            box = [rows, columns]
            box.insert(self.slice_axis, slice(0, len(contours)))
            record = VolumeRecord(case, choices, drawer.calls, given, made, (box[0], box[1], box[2]), kept)
            self.on_volume(record)
        return result.moveaxis(0, self.slice_axis)

    def _solve(
        self, contours: torch.Tensor, keys: Sequence[tuple[str, int, int, int]], network: nn.Module
    ) -> torch.Tensor:
        """Denoise one batch: contours ``(B, H, W)`` and their (case, slice, round, candidate) -> gray levels."""
        noise = NoiseStream([CandidateKey(self.seed, *key) for key in keys], (1, *contours.shape[1:]), contours.device)
        buffer = torch.stack([torch.zeros_like(contours), contours], dim=1)

        def predict(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            buffer[:, :1] = x
            output: torch.Tensor = network(buffer, timesteps)
            return output.float()

        common: dict[str, Any] = {
            "alphas_cumprod": self.scheduler.alphas_cumprod,
            "prediction_type": str(self.scheduler.prediction_type),
            "draw": noise.draw,
        }
        if self.solver == "ddpm":
            x0 = ddpm(predict, noise.draw(), **common)
        else:
            x0 = ddim(predict, noise.draw(), num_inference_steps=self.num_inference_steps, eta=self.eta, **common)
        return ((x0[:, 0] + 1) * 127.5).clamp(0, 255)


class CandidateDrawer:
    """Candidates on demand, denoised in full batches: what a round leaves free is filled with slices that come next.

    Args:
        solve: ``(contours (B, H, W), keys, network) -> (B, H, W)``.
        contours: ``(N, H, W)``, all slices.
        case: id of the volume.
        indices: slices that will be asked for, in order.
        candidates: candidates a round.
        batch_size: items in every call of ``solve``; the last batch is padded.
        network: passed on.
    """

    def __init__(
        self,
        solve: Callable[[torch.Tensor, Sequence[tuple[str, int, int, int]], nn.Module], torch.Tensor],
        contours: torch.Tensor,
        case: str,
        indices: Sequence[int],
        candidates: int,
        batch_size: int,
        network: nn.Module,
    ) -> None:
        self._solve = solve
        self._contours = contours
        self._case = case
        self._candidates = candidates
        self._batch_size = batch_size
        self._network = network
        self._ready: dict[tuple[int, int, int], torch.Tensor] = {}
        self._upcoming = deque((index, 0, candidate) for index in indices for candidate in range(candidates))
        self.calls = 0

    def __call__(self, slice_index: int, round_: int) -> torch.Tensor:
        """All candidates of one round of one slice: ``(candidates, H, W)``."""
        wanted = [(slice_index, round_, candidate) for candidate in range(self._candidates)]
        missing = [item for item in wanted if item not in self._ready]
        while missing:
            batch, missing = missing[: self._batch_size], missing[self._batch_size :]
            batch += self._next(self._batch_size - len(batch), wanted)
            self._denoise(batch)
        return torch.stack([self._ready[item] for item in wanted])

    def drawn(self, slice_index: int) -> torch.Tensor:
        """Every candidate that was drawn for a slice and is not forgotten, of all rounds: ``(N, H, W)``."""
        return torch.stack([image for item, image in self._ready.items() if item[0] == slice_index])

    def forget(self, slice_index: int) -> None:
        """Free the candidates of a slice that has been chosen."""
        self._ready = {item: image for item, image in self._ready.items() if item[0] != slice_index}

    def _next(self, count: int, wanted: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        items: list[tuple[int, int, int]] = []
        while self._upcoming and len(items) < count:
            item = self._upcoming.popleft()
            if item not in self._ready and item not in wanted and item[0] >= wanted[0][0]:
                items.append(item)
        return items

    def _denoise(self, items: list[tuple[int, int, int]]) -> None:
        padded = items + items[:1] * (self._batch_size - len(items))
        contours = self._contours[[item[0] for item in padded]]
        images = self._solve(contours, [(self._case, *item) for item in padded], self._network)
        self.calls += 1
        self._ready.update(zip(items, images, strict=False))


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


def _case_of(volume: torch.Tensor) -> str:
    name = volume.meta.get("filename_or_obj", "") if isinstance(volume, MetaTensor) else ""
    return case_of(str(name)) if name else ""


def _frame(contours: torch.Tensor, divisor: int, margin: int) -> tuple[slice, slice, torch.Tensor]:
    """Box around all contours: its rows and columns, and the contours in it, padded behind to a multiple."""
    bounds = []
    for axes, size in (((0, 2), contours.shape[1]), ((0, 1), contours.shape[2])):
        filled = torch.nonzero(contours.amax(dim=axes) > 0).flatten().tolist() if contours.numel() else []
        first, last = (filled[0], filled[-1]) if filled else (0, size - 1)
        bounds.append(slice(max(first - margin, 0), min(last + margin + 1, size)))
    rows, columns = bounds
    box = contours[:, rows, columns]
    missing = [-size % divisor for size in box.shape[1:]]
    return rows, columns, pad(box, (0, missing[1], 0, missing[0]))
