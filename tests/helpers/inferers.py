# SPDX-License-Identifier: Apache-2.0
"""Inferers with the tiny network, and what goes into them."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from monai.networks.schedulers import DDPMScheduler

from contourdiff.inference import (
    CascadeDenoiser,
    Denoiser,
    Execution,
    IndependentCandidates,
    Painter,
    VolumeInferer,
)
from contourdiff.sampling import Sampler, SelectionRules
from helpers.networks import make_seeded

SCHEDULER = DDPMScheduler(
    num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, prediction_type="v_prediction"
)

RULES = SelectionRules(candidates=3, max_rounds=3, mean_threshold=120.0, distance_threshold=2500.0)
SAMPLING = ("solver", "num_inference_steps", "eta")
EXECUTION = ("batch_size", "amp", "acceleration", "retain_heap")
INFERER = ("slice_axis", "margin_px", "keep_spread", "progress")


def random_contours(seed: int = 0, shape: tuple[int, int, int] = (7, 21, 18)) -> torch.Tensor:
    volume = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.8).float()
    volume[0] = volume[3] = 0
    return volume


def as_case(volumes: list[torch.Tensor], names: list[str]) -> MetaTensor:
    batch = MetaTensor(torch.stack(volumes)[:, None])
    batch.meta = {"filename_or_obj": [f"folder/{name}.nii.gz" for name in names]}
    batch.applied_operations = [[] for _ in names]
    batch.is_batch = True
    return batch


def make_inferer(
    kind: type[Painter] = IndependentCandidates, scheduler: Any = SCHEDULER, **arguments: Any
) -> VolumeInferer:
    """An inferer whose arguments, and those of its painter, sampler and execution, are given by name."""
    defaults = {
        "rules": RULES,
        "num_inference_steps": 3,
        "batch_size": 4,
        "margin_px": 2,
        "progress": False,
    }
    groups: dict[str, dict[str, Any]] = {
        "sampler": {},
        "execution": {},
        "inferer": {},
        "painter": {},
    }
    for name, value in {**defaults, **arguments}.items():
        if name in SAMPLING:
            groups["sampler"][name] = value
        elif name in EXECUTION:
            groups["execution"][name] = value
        elif name in INFERER:
            groups["inferer"][name] = value
        else:
            groups["painter"][name] = value
    painter = kind(  # type: ignore[call-arg]
        sampler=Sampler(scheduler, **groups["sampler"]),
        execution=Execution(**groups["execution"]),
        **groups["painter"],
    )
    return VolumeInferer(painter, **groups["inferer"])


def denoiser_of(inferer: VolumeInferer, network: torch.nn.Module) -> Denoiser | CascadeDenoiser:
    """The denoiser that the inferer's painter uses."""
    painter = inferer.painter
    assert isinstance(painter, IndependentCandidates)
    return painter.execution.denoiser(network, painter.sampler)


def translate_contours(volume: torch.Tensor, name: str = "a", **arguments: Any) -> torch.Tensor:
    """Gray levels ``(H, W, D)`` of one volume of contours, by the tiny network."""
    return make_inferer(**arguments)(as_case([volume], [name]), make_seeded()).as_tensor()[0, 0]
