# SPDX-License-Identifier: Apache-2.0
"""The cascade: two networks as one translator, in several contrasts, with the weights that ship."""

from __future__ import annotations

import json
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch.nn.functional import avg_pool2d, pixel_unshuffle

from contourdiff.bundle import config_files, run_inference_config
from contourdiff.inference import (
    CascadeDenoiser,
    Denoiser,
    Execution,
    IndependentCandidates,
    VolumeInferer,
)
from contourdiff.inference.summary import read_run
from contourdiff.networks import CascadeUNet, ContourUNet, GuidedUNet, enlarge
from contourdiff.sampling import Sampler, SelectionRules
from contourdiff.weights import load_weights, sha256_of
from helpers.networks import TINY_NETWORK
from helpers.paths import CONFIGS
from helpers.runs import QUICK_SETTINGS
from helpers.volumes import ball_ct, make_mr, write_nifti

MODELS = CONFIGS.parent / "models"
SMALL = {key: value for key, value in TINY_NETWORK.items() if key != "_target_"}


def small(**changes: object) -> ContourUNet:
    network = ContourUNet(**{**SMALL, **changes})  # type: ignore[arg-type]
    for weight in network.parameters():
        if not weight.any():  # MONAI starts the last layer of every block with 0
            torch.nn.init.normal_(weight, std=0.05)
    return network.eval()


@pytest.fixture
def cascade() -> CascadeUNet:
    torch.manual_seed(0)
    return CascadeUNet(small(in_channels=5), small(in_channels=3)).eval()


@pytest.fixture
def contours() -> torch.Tensor:
    return (torch.rand(3, 1, 32, 24, generator=torch.Generator().manual_seed(1)) < 0.1).float()


SAMPLER = Sampler(
    DDPMScheduler(prediction_type="v_prediction"), num_inference_steps=3, num_refinement_steps=2
)
PLACES = [("case", index, 0, 0) for index in range(3)]


def test_the_cascades_second_network_refines_the_first_ones_image(
    cascade: CascadeUNet, contours: torch.Tensor
) -> None:
    denoise = Execution(batch_size=3).denoiser(cascade, SAMPLER)
    assert isinstance(denoise, CascadeDenoiser)
    image = denoise(contours, PLACES)
    coarse = Denoiser(cascade.coarse, SAMPLER, batch_size=3)(pixel_unshuffle(contours, 2), PLACES)
    conditions = torch.cat([contours, enlarge(coarse[:, None] / 127.5 - 1, 2)], dim=1)
    two_steps = Sampler(SAMPLER.scheduler, num_inference_steps=2)
    named = [("case refined", index, 0, 0) for index in range(3)]
    expected = Denoiser(cascade.refiner, two_steps, batch_size=3)(conditions, named)
    assert image.shape == (3, 32, 24)
    assert torch.equal(image, expected)
    assert denoise.calls == 2


def test_a_candidate_depends_on_nothing_else_in_its_batch(
    cascade: CascadeUNet, contours: torch.Tensor
) -> None:
    denoise = Execution(batch_size=4).denoiser(cascade, SAMPLER)
    together = denoise(contours, PLACES)
    alone = denoise(contours[2:], PLACES[2:])
    assert torch.equal(together[2:], alone)


def test_a_batch_size_counts_for_both_networks(
    cascade: CascadeUNet, contours: torch.Tensor
) -> None:
    denoise = Execution(batch_size=1).denoiser(cascade, SAMPLER)
    denoise(contours, PLACES)
    assert (denoise.calls, denoise.batch_size) == (6, 1)


class WithoutContrasts(torch.nn.Module):
    """A second network that takes no ``class_labels``: its output is the coarse image."""

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return x[:, 2:]


def test_the_contrast_is_for_the_first_network(contours: torch.Tensor) -> None:
    torch.manual_seed(0)
    coarse = small(in_channels=5, contrasts=["t1", "t2"])
    cascade = CascadeUNet(coarse, WithoutContrasts())
    denoise = Execution(batch_size=3).denoiser(cascade, SAMPLER)
    default, first, second = (denoise(contours, PLACES, class_labels=n) for n in (None, 0, 1))
    mixed = denoise(contours, PLACES, class_labels=[0, 1, 1])
    assert torch.equal(default, first)
    assert not torch.equal(first, second)
    assert torch.equal(mixed, torch.cat([first[:1], second[1:]]))


def test_a_volume_of_any_size_is_translated_and_cut_to_it(cascade: CascadeUNet) -> None:
    volume = torch.zeros(1, 1, 3, 37, 29)
    volume[..., 1:, 5:30, 8:20] = (torch.rand(2, 25, 12) < 0.2).float()
    rules = SelectionRules(candidates=2, max_rounds=1)
    painter = IndependentCandidates(SAMPLER, rules, Execution(batch_size=2))
    inferer = VolumeInferer(painter, margin_px=4, progress=False)
    (result,) = inferer.translate(volume, cascade)
    assert cascade.size_divisor == 8
    assert result.gray_levels.shape == (1, 3, 37, 29)
    assert result.choices[0] is None
    assert all(choice is not None for choice in result.choices[1:])


def test_contrasts_share_all_but_their_embedding() -> None:
    torch.manual_seed(0)
    network = small(contrasts=["t1", "t2"], contrast="t2")
    x, t = torch.randn(2, 2, 16, 16), torch.tensor([500, 500])
    assert network.state_dict()["class_embedding.weight"].shape[0] == 2
    assert torch.equal(network(x, t), network(x, t, class_labels=torch.tensor([1, 1])))
    assert not torch.equal(network(x, t), network(x, t, class_labels=torch.tensor([0, 0])))
    assert "class_embedding.weight" not in small(contrast="t1").state_dict()
    with pytest.raises(ValueError, match=r"contrast must be one of \['t1', 't2'\], got 'pd'"):
        small(contrasts=["t1", "t2"], contrast="pd")
    with pytest.raises(ValueError, match="expected factor to be a whole number from 2"):
        CascadeUNet(network, network, factor=1)


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cascade") / "ct"
    volume = ball_ct((4, 40, 36))
    write_nifti(folder / "a.nii.gz", volume, np.diag([4.0, 2.0, 2.0, 1.0]))
    write_nifti(
        folder / "labels" / "a.nii.gz",
        (volume > 200).astype(np.uint8),
        np.diag([4.0, 2.0, 2.0, 1.0]),
    )
    return folder


QUICK = {
    "num_inference_steps": 2,
    "num_refinement_steps": 1,
    "candidates": 1,
    "max_rounds": 1,
    "min_object_mm2": 100.0,
    **QUICK_SETTINGS,
}


@pytest.mark.slow
def test_several_contrasts_are_those_of_separate_runs(ct: Path, tmp_path: Path) -> None:
    """Shipped weights: two volumes with a label and a record each; a second run keeps them."""
    both = run_inference_config(
        ct, tmp_path / "both", contrast="t1,t2", logging_file=False, **QUICK
    )
    ends = ("label.nii.gz", "mr.json", "mr.nii.gz", "mr.png")
    written = [f"a_{contrast}_{end}" for contrast in ("t1", "t2") for end in ends]
    assert sorted(path.name for path in both.iterdir()) == [*written, "run.json"]
    images = []
    for contrast in ("t1", "t2"):
        alone = run_inference_config(
            ct, tmp_path / contrast, contrast=contrast, logging_file=False, **QUICK
        )
        images.append(np.asarray(nib.load(both / f"a_{contrast}_mr.nii.gz").dataobj))
        np.testing.assert_array_equal(
            images[-1], np.asarray(nib.load(alone / "a_mr.nii.gz").dataobj)
        )
        record = json.loads((both / f"a_{contrast}_mr.json").read_text())
        assert record["settings"]["contrast"] == contrast
        assert record["weights"]["refiner"]["sha256"] == sha256_of(MODELS / "refiner.pt")
    assert np.abs(images[0] - images[1]).mean() > 1
    times = [(both / name).stat().st_mtime_ns for name in written]
    run_inference_config(ct, both, contrast="t1,t2", logging_file=False, **QUICK)
    assert [(both / name).stat().st_mtime_ns for name in written] == times
    assert [(row["case"], row["status"]) for row in read_run(both)["cases"]] == [
        ("a_t1", "kept"),
        ("a_t2", "kept"),
    ]


@pytest.mark.parametrize("contrast", ["pd", "t1,pd"])
def test_an_unknown_contrast_is_refused_before_any_work(
    contrast: str, ct: Path, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"contrast must be|instantiating"):
        run_inference_config(ct, tmp_path / "mr", contrast=contrast, logging_file=False)
    assert not list(tmp_path.glob("mr/*"))


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["train_single", "train_refiner", None])
def test_each_network_of_the_cascade_can_be_trained(overlay: str | None, tmp_path: Path) -> None:
    """The shipped configs, with small networks; what they write is what the translation loads."""
    overlays = [] if overlay is None else [overlay]
    contrasts = {"t1": "mr[0-2].nii.gz", "t2": "*"} if overlay is None else {}
    channels = {"train_single": 2, "train_refiner": 3, None: 5}[overlay]
    network = {**TINY_NETWORK, "in_channels": channels, "contrasts": list(contrasts)}
    monai.bundle.run(
        config_file=config_files(base="train", overlays=overlays),
        **{
            "dataset_dir": str(make_mr(tmp_path / "mr")),
            "datalist": "index.csv",
            "output_dir": str(tmp_path / "out"),
        },
        **{
            "network_def": network,
            "contrasts": contrasts,
            "image_size_px": [32, 32],
            "min_object_mm2": 100.0,
            "filter_classes": 3,
        },
        **{
            "batch_size": 2,
            "epoch_length": 2,
            "max_epochs": 2,
            "warmup_steps": 1,
            "val_interval": 1,
        },
        **{"picture_interval": 2, "logging_file": False},
    )
    assert (tmp_path / "out" / "translations_00002.png").stat().st_size > 1000
    arguments = {key: value for key, value in network.items() if key != "_target_"}
    trained = load_weights(ContourUNet(**arguments), tmp_path / "out" / "model.pt")  # type: ignore[arg-type]
    assert all(value.isfinite().all() for value in trained.state_dict().values())


@torch.no_grad()
def test_guidance_moves_the_output_away_from_that_without_contour() -> None:
    network, x, t = small(in_channels=3), torch.randn(2, 3, 16, 16), torch.tensor([10, 900])
    empty = torch.stack([x[:, 0], torch.zeros(2, 16, 16), x[:, 2]], dim=1)
    own, without = network(x, t), network(empty, t)
    assert torch.equal(GuidedUNet(network)(x, t), own)
    torch.testing.assert_close(GuidedUNet(network, 0.0)(x, t), without)
    torch.testing.assert_close(GuidedUNet(network, 1.5)(x, t), without + 1.5 * (own - without))
    assert GuidedUNet(network, 1.5).size_divisor == network.size_divisor
    with pytest.raises(
        ValueError, match="expected refinement_guidance to be a number from 0 to 100, got -1"
    ):
        GuidedUNet(network, -1)


@pytest.mark.slow
def test_guidance_is_a_setting(ct: Path, tmp_path: Path) -> None:
    images = []
    for scale in (1.0, 2.0):
        out = run_inference_config(
            ct, tmp_path / str(scale), refinement_guidance=scale, logging_file=False, **QUICK
        )
        assert (
            json.loads((out / "a_mr.json").read_text())["settings"]["refinement_guidance"] == scale
        )
        images.append(np.asarray(nib.load(out / "a_mr.nii.gz").dataobj))
    assert np.abs(images[0] - images[1]).mean() > 0.1


def test_grids_of_both_networks_are_aligned() -> None:
    """A ramp that is averaged over squares and enlarged is the same ramp, but for the rim."""
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    ramp = (2 * rows - 3 * columns)[None, None]
    torch.testing.assert_close(
        enlarge(avg_pool2d(ramp, 2), 2)[..., 1:-1, 1:-1], ramp[..., 1:-1, 1:-1]
    )
