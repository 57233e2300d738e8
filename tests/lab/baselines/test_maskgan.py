# SPDX-License-Identifier: Apache-2.0
"""MaskGAN as a whole: it learns a known mapping, trains on real images, resumes exactly, and translates."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn

from contourdiff.bundle import config_files, find_bundle
from contourdiff.training.handlers import newest_checkpoint
from contourdiff_lab.baselines.attention import AttentionGenerator
from contourdiff_lab.baselines.cycle import AdversarialTerm, CycleTerm, CycleTrainer, IdentityTerm
from contourdiff_lab.baselines.handlers import TrainingBudget
from contourdiff_lab.baselines.image_pool import ImagePool
from contourdiff_lab.baselines.masks import MaskTerm, ShapeConsistencyTerm
from contourdiff_lab.baselines.training import read_record, train_baseline, translate_with_baseline
from helpers import ball_ct, make_mr, voxels, write_nifti

TINY = {
    "generator_channels": 4,
    "generator_blocks": 1,
    "discriminator_channels": 4,
    "image_size_px": [32, 32],
    "shift_px": 3,
    "min_object_mm2": 10.0,
    "mr_min_object_mm2": 10.0,
    "batch_size": 2,
    "epoch_length": 2,
}


def bodies(count: int, seed: int) -> Tensor:
    """Ellipses of gray level 0.25 in air of 0, with discs of 0.4 and 0.55 in them: ``(count, 1, 32, 32)``."""
    rng = np.random.default_rng(seed)
    pixels = np.mgrid[:32, :32].astype(float).reshape(2, 1, 32, 32)
    center, radius = rng.uniform(13, 19, (2, count, 1, 1)), rng.uniform(9.5, 13.5, (2, count, 1, 1))
    body = (((pixels - center) / radius) ** 2).sum(axis=0) < 1
    image = np.where(body, 0.25, 0.0)
    for gray in (0.4, 0.55):
        middle = center + rng.uniform(-0.4, 0.4, (2, count, 1, 1)) * radius
        image[body & (np.hypot(*(pixels - middle)) < rng.uniform(4, 7, (count, 1, 1)))] = gray
    return torch.tensor(image[:, None], dtype=torch.float32)


def as_mr(gray: Tensor) -> Tensor:
    """The known mapping: the body is brighter in MR by 0.35, and air is air."""
    return torch.where(gray > 0, 0.35 + gray, gray)


def trainer_of(networks: nn.ModuleDict, loader: list[dict[str, Tensor]]) -> CycleTrainer:
    """All five losses with their default weights, and a rate of 3e-3, for a training of hundreds of iterations."""
    parts = {
        "generators": ("ct_to_mr", "mr_to_ct"),
        "discriminators": ("ct_discriminator", "mr_discriminator"),
    }
    optimizers = {
        name: torch.optim.Adam(
            [p for part in names for p in networks[part].parameters()], 3e-3, betas=(0.5, 0.999)
        )
        for name, names in parts.items()
    }
    terms = {
        "adversarial": AdversarialTerm(networks["ct_discriminator"], networks["mr_discriminator"]),
        "cycle": CycleTerm(),
        "identity": IdentityTerm(networks["ct_to_mr"], networks["mr_to_ct"]),
        "mask": MaskTerm(),
        "shape": ShapeConsistencyTerm(),
    }
    pools = {"ct": ImagePool(), "mr": ImagePool()}
    return CycleTrainer(
        networks, optimizers, terms, pools, loader, 1, train_handlers=[TrainingBudget(optimizers)]
    )


def test_it_learns_a_known_mapping_and_where_the_body_is() -> None:
    """From a mean error of 0.7, of a range of 2, to less than 0.15 in 300 iterations: some 20 s of one core."""
    torch.manual_seed(0)
    ct, mr = bodies(256, seed=0), as_mr(bodies(256, seed=1))
    rng = np.random.default_rng(2)
    loader = []
    for _ in range(300):
        one, other = ct[rng.integers(256, size=2)], mr[rng.integers(256, size=2)]
        masks = {"ct_mask": (one > 0).float(), "mr_mask": (other > 0).float()}
        loader.append({"ct": 2 * one - 1, "mr": 2 * other - 1, **masks})
    networks = nn.ModuleDict(
        {
            name: AttentionGenerator(channels=8, blocks=1, attentions=3)
            for name in ("ct_to_mr", "mr_to_ct")
        }
    )
    for name in ("ct_discriminator", "mr_discriminator"):
        networks[name] = PatchDiscriminator(
            2, channels=8, in_channels=1, num_layers_d=2, norm="INSTANCE"
        )
    trainer_of(networks, loader).run()

    gray = bodies(32, seed=3)
    body, truth = gray > 0, 2 * as_mr(gray) - 1
    with torch.no_grad():
        translated, others = networks["ct_to_mr"](2 * gray - 1)
    assert (2 * gray - 1 - truth).abs()[body].mean() > 0.69
    assert (translated - truth).abs()[body].mean() < 0.15
    assert (translated - truth).abs()[~body].mean() < 0.02
    for level in (0.25, 0.4, 0.55):  # each tissue on its own, not only their mean
        tissue = gray.isclose(torch.tensor(level))
        assert (translated - truth)[tissue].mean().abs() < 0.15
    assert others["attention"][~body].mean() > 0.8
    assert others["attention"][body].mean() < 0.5


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CT, MR and a training of two epochs."""
    folder = tmp_path_factory.mktemp("maskgan")
    write_nifti(folder / "ct" / "a.nii.gz", ball_ct(), np.diag([4.0, 4.0, 4.0, 1.0]))
    make_mr(folder / "mr")
    train_baseline(
        "maskgan", folder / "ct", folder / "mr", folder / "baseline", max_epochs=2, **TINY
    )
    return folder


def test_the_record_has_the_settings_of_the_masks(trained: Path) -> None:
    recorded = read_record(trained / "baseline")["settings"]
    assert (recorded["mask_weight"], recorded["shape_weight"], recorded["attentions"]) == (
        1.0,
        0.5,
        5,
    )
    assert (
        recorded["ct_mask_threshold"],
        recorded["mr_mask_threshold"],
        recorded["mask_hole_px"],
    ) == (10, 5, 20)
    assert recorded["network_def"]["attentions"] == 5
    assert "terms" not in recorded


def test_a_resumed_training_equals_one_without_a_stop(trained: Path, tmp_path: Path) -> None:
    paths = {name: str(trained / name[:2]) for name in ("ct_dir", "mr_dir")}
    files = config_files(overlays=["maskgan"], base="cyclegan")
    settings = {
        **paths,
        "output_dir": str(tmp_path),
        "method": "maskgan",
        "bundle_root": str(find_bundle()),
        "max_epochs": 2,
        **TINY,
    }
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **settings)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), trainer.terminate)
    workflow.run()
    assert (trainer.state.iteration, newest_checkpoint(tmp_path)) == (
        2,
        tmp_path / "checkpoint_epoch=1.pt",
    )
    assert not (tmp_path / "trained.json").exists()
    torch.manual_seed(12345)
    train_baseline("maskgan", trained / "ct", trained / "mr", tmp_path, max_epochs=2, **TINY)
    once, resumed = (
        torch.load(folder / "generator.pt", weights_only=True)
        for folder in (trained / "baseline", tmp_path)
    )
    assert once.keys() == resumed.keys()
    assert all(once[name].equal(resumed[name]) for name in once)


def test_its_generator_translates_ct_on_the_grid_of_the_ct(trained: Path, tmp_path: Path) -> None:
    translate_with_baseline(trained / "baseline", trained / "ct", tmp_path, progress=False)
    source = nib.load(trained / "ct" / "a.nii.gz")
    mr = nib.load(tmp_path / "a_mr.nii.gz")
    assert mr.shape == source.shape
    np.testing.assert_array_equal(mr.affine, source.affine)
    assert np.ptp(voxels(tmp_path / "a_mr.nii.gz")) > 1
    assert (
        json.loads((tmp_path / "a_mr.json").read_text())["settings"]["network_def"]["attentions"]
        == 5
    )


def test_it_trains_on_real_slices(real_data: Path, tmp_path: Path) -> None:
    for side, paths in {
        "ct": [real_data / "ct" / "torso_ct.nii.gz"],
        "mr": sorted((real_data / "mr_lumbar" / "t1").glob("*.nii.gz"))[:6],
    }.items():
        (tmp_path / side).mkdir()
        for path in paths:
            (tmp_path / side / path.name).symlink_to(path)
    small = {
        name: TINY[name]
        for name in ("generator_channels", "generator_blocks", "discriminator_channels")
    }
    baseline = train_baseline(
        "maskgan",
        tmp_path / "ct",
        tmp_path / "mr",
        tmp_path / "baseline",
        epoch_length=2,
        max_epochs=1,
        spacing_mm=4.4,
        **small,
    )
    assert (read_record(baseline)["iterations"], read_record(baseline)["images"]) == (2, 8)
    generator = AttentionGenerator(channels=4, blocks=1)
    generator.load_state_dict(torch.load(baseline / "generator.pt", weights_only=True), strict=True)
