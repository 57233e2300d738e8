# SPDX-License-Identifier: Apache-2.0
"""What all benchmarks share: how much is run, the networks, tables and the description of the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.networks.schedulers import DDPMScheduler, Scheduler
from torch import nn

from contourdiff.inference import Execution, IndependentCandidates, VolumeInferer
from contourdiff.networks import ContourUNet
from contourdiff.sampling.sampler import Sampler
from contourdiff.sampling.selection import SelectionRules
from contourdiff.tables import markdown_table

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLE = REPOSITORY / "bundles" / "contourdiff_ct2mr"
MIB = 2**20

PAPER_NETWORK: dict[str, Any] = {
    "patch_size": 1,
    "channels": [128, 128, 256, 256, 512, 512],
    "attention_levels": [False, False, False, False, True, False],
    "num_res_blocks": 2,
    "num_head_channels": 8,
    "norm_eps": 1e-5,
}
TINY_NETWORK: dict[str, Any] = {
    "patch_size": 2,
    "channels": [32, 32],
    "attention_levels": [False, False],
    "num_res_blocks": 1,
    "num_head_channels": 32,
}


@dataclass(frozen=True)
class Settings:
    """How much is run.

    Args:
        rounds: counted rounds of the timings, after a warm-up.
        steps: DDIM steps with the bundle's network.
        slices: slices translated with the bundle's network.
        quick: everything small, with a tiny network: for tests of the benchmarks, not for figures.
        ct: CT file whose contours are translated; empty for the digital phantom.
    """

    rounds: int = 5
    steps: int = 10
    slices: int = 3
    quick: bool = False
    ct: str = ""


class Convolution(nn.Module):
    """A single convolution in the place of the network, where what lies around the network is measured."""

    size_divisor = 1

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """``(B, 2, H, W)`` at ``timesteps (B,)`` -> ``(B, 1, H, W)``."""
        output: torch.Tensor = self.convolution(x)
        return output


def make_network(name: str, flash: bool = False) -> nn.Module:
    """Network in evaluation mode; the same weights in every process.

    Args:
        name: ``"bundle"``, the first network of the bundle's cascade with a contour of one channel; ``"paper"``;
            ``"tiny"``; each with random weights, the last layer included; or ``"convolution"``.
        flash: use PyTorch's fused attention; the state dict is the same.
    """
    torch.manual_seed(0)
    if name == "convolution":
        return Convolution().eval()
    definitions = {"paper": PAPER_NETWORK, "tiny": TINY_NETWORK, "bundle": _bundle_network()}
    network: Any = ContourUNet(**{**definitions[name], "use_flash_attention": flash})
    generator = torch.Generator().manual_seed(1)
    torch.nn.init.normal_(network.out[2].conv.weight, std=0.02, generator=generator)
    return network.eval()


def make_scheduler(prediction_type: str = "v_prediction") -> Scheduler:
    """The bundle's noise schedule.

    The paper's network is told to predict the velocity, too, which costs the same: its weights are random here, and
    from the noise at the last timestep a clean image is 158 times the difference of two numbers, so that rounding
    alone would tell two correct loops apart.
    """
    return DDPMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, prediction_type=prediction_type
    )


def make_inferer(
    steps: int, rules: SelectionRules, execution: Execution, margin_px: int = 8
) -> VolumeInferer:
    """Our inferer, with DDIM of ``steps`` steps on the bundle's schedule."""
    sampler = Sampler(make_scheduler(), num_inference_steps=steps)
    painter = IndependentCandidates(sampler, rules, execution)
    return VolumeInferer(painter, margin_px=margin_px, progress=False)


def inference_config() -> ConfigParser:
    """The bundle's ``inference.json``."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    return parser


def machine() -> dict[str, str | int]:
    """Processor, cores that this process may use, threads of torch, and versions."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores that may be used": cores,
        "threads of torch": torch.get_num_threads(),
        "graphics card": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "monai", "diffusers", "numpy")},
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown table; fractions with three significant digits."""
    return markdown_table(header, [[_cell(value) for value in row] for row in rows])


def table_of(rows: Sequence[Mapping[str, object]]) -> str:
    """Markdown table of one row or more, whose keys are its columns."""
    return table(list(rows[0]), [list(row.values()) for row in rows])


def _bundle_network() -> dict[str, Any]:
    arguments = dict(inference_config().get("network_def"))
    del arguments["_target_"]
    arguments.update(in_channels=2, contrasts=[])
    return arguments


def _processor() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cell(value: object) -> str:
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.3g}"
    return str(value)
