# SPDX-License-Identifier: Apache-2.0
"""A tiny experiment: slices of 32 x 32 pixels, networks of a few thousand weights, and one run of it for all tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from contourdiff.networks import ContourUNet
from contourdiff_lab.experiment.plan import ExperimentPlan
from contourdiff_lab.experiment.run import run_experiment
from helpers.domains import CT_LEVELS, MR_LEVELS, random_shapes
from helpers.networks import TINY_NETWORK
from helpers.runs import QUICK_SETTINGS
from helpers.volumes import write_nifti

AFFINE = np.diag([4.0, 2.2, 2.2, 1.0])
MR_CASES = ("01_t1", "01_t2", "02_t1")
"""Cases of two patients, of whom the second has no T2."""
CONTRASTS = ["t1", "t2"]
SEGMENTATION_NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": "@channels_out",
    "channels": [4, 8],
    "strides": [2],
}
SLICES = {"image_size_px": [32, 32], "min_object_mm2": 100.0, "filter_classes": 3}
SLICES |= {"max_epochs": 1, "epoch_length": 2}


def _volume(seed: int, levels: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` sagittal slices of a body with two bones: intensities with noise, and classes."""
    items = [random_shapes(seed + number, levels, size=32) for number in range(count)]
    image = torch.cat([item["image"] for item in items]).numpy()
    label = torch.cat([item["label"] for item in items]).numpy()
    noise = np.random.default_rng(seed).normal(0, 8, image.shape)
    return (image + noise).astype(np.float32), label == 2


def _write_images(root: Path) -> None:
    image, bone = _volume(0, CT_LEVELS * 500, count=4)
    write_nifti(root / "ct" / "a.nii.gz", image.astype(np.int16), AFFINE)
    write_nifti(root / "ct" / "labels" / "a.nii.gz", (bone * 27).astype(np.uint8), AFFINE)
    for number, case in enumerate(MR_CASES):
        image, bone = _volume(10 * number + 10, 100 + MR_LEVELS * 100, count=3)
        write_nifti(root / "mr" / "images" / f"{case}.nii.gz", image, AFFINE)
        write_nifti(root / "mr" / "labels" / f"{case}.nii.gz", bone.astype(np.uint8), AFFINE)
        write_nifti(root / "mr_training" / f"{case}.nii.gz", image, AFFINE)


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ExperimentPlan:
    """An experiment of one CT, one small segmentation network, and a translator of two contrasts."""
    root = tmp_path_factory.mktemp("experiment")
    _write_images(root)
    torch.manual_seed(0)
    settings = {name: value for name, value in TINY_NETWORK.items() if name != "_target_"}
    network = ContourUNet(**settings, contrasts=CONTRASTS)
    torch.nn.init.normal_(network.out[2].conv.weight, std=0.05)
    torch.save(network.state_dict(), root / "translator.pt")
    translator = {**TINY_NETWORK, "contrasts": CONTRASTS}
    return ExperimentPlan(
        ct_dir=root / "ct",
        mr_dir=root / "mr",
        output_dir=root / "out",
        architectures=("unet",),
        groups={"all": "*", "t1": "*_t1"},
        patient_pattern="([0-9]+)_",
        ckpt_path=root / "translator.pt",
        mr_training={"dataset_dir": str(root / "mr_training")},
        rows=("without_adaptation", "unconditional", "ours", "ours_crossdomain", "ours_t1_t2"),
        overlays=("single",),
        translation={
            "network_def": translator,
            "contrasts": CONTRASTS,
            "num_inference_steps": 2,
            "candidates": 2,
            "max_rounds": 1,
            "min_object_mm2": 100.0,
            **QUICK_SETTINGS,
        },
        segmentation={
            "network_def": SEGMENTATION_NETWORK,
            "image_size_px": [32, 32],
            "max_epochs": 1,
            "epoch_length": 2,
        },
        unconditional={"network_def": translator, "batch_size": 2, **SLICES},
        baselines={
            "mr_min_object_mm2": 100.0,
            "generator_channels": 4,
            "generator_blocks": 1,
            "discriminator_channels": 4,
            **SLICES,
        },
    )


@pytest.fixture(scope="session")
def table(plan: ExperimentPlan) -> Path:
    """``table.md`` of the rows by default, in the folder of their results; it is only read."""
    return run_experiment(plan)
