# SPDX-License-Identifier: Apache-2.0
"""Agreement on held-out slices, with a network whose answer is known."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_fill_holes, gaussian_filter
from torch import nn

from contourdiff.transforms import Contour
from contourdiff_lab.held_out import (
    COLUMNS,
    HeldOut,
    agreement_picture,
    evaluate_bundle,
    held_out_agreement,
    summarize,
    texture_db,
    write_agreement,
)
from helpers.networks import TINY_NETWORK
from helpers.paths import CONFIGS

CONTOUR = Contour(sigma_px=1.0, low_threshold=20.0, high_threshold=40.0)
ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 100), 0)
TRAIN_CONFIG = [str(CONFIGS / "train.json"), str(CONFIGS / "train_single.json")]
PNG = b"\x89PNG"


class Filler(nn.Module):
    """Knows the answer: the image is the filled contour, whatever the noise."""

    def __init__(self, prediction_type: str) -> None:
        super().__init__()
        self.prediction_type = prediction_type

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        noisy, contour = x[:, :1], x[:, 1:]
        filled = np.stack([binary_fill_holes(mask[0]) for mask in contour.numpy() > 0])[:, None]
        x0 = 2 * torch.from_numpy(filled).float() - 1
        alpha_bar = ALPHAS_CUMPROD[timesteps][:, None, None, None]
        epsilon = (noisy - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
        velocity = alpha_bar.sqrt() * epsilon - (1 - alpha_bar).sqrt() * x0
        return epsilon if self.prediction_type == "epsilon" else velocity


def discs(count: int = 5, size: int = 48) -> list[dict[str, torch.Tensor]]:
    y, x = np.mgrid[:size, :size]
    items = []
    for i in range(count):
        disc = (y - 14 - 5 * i) ** 2 + (x - 32 + 4 * i) ** 2 < (7 + i % 3) ** 2
        image = torch.from_numpy(disc[None].astype(np.float32) * 255)
        items.append({"image": image / 127.5 - 1, "contour": CONTOUR(image)})
    return items


def held_out(dataset: list[dict[str, torch.Tensor]], network: nn.Module, **options: Any) -> HeldOut:
    prediction_type = options.pop("prediction_type", "v_prediction")
    scheduler = SimpleNamespace(alphas_cumprod=ALPHAS_CUMPROD, prediction_type=prediction_type)
    return HeldOut(network, dataset, scheduler, CONTOUR, **options)


def agreement(dataset: list[dict[str, torch.Tensor]], **options: Any) -> list[dict[str, Any]]:
    network = Filler(options.get("prediction_type", "v_prediction"))
    slices = held_out(dataset, network, **options)
    return held_out_agreement(slices, slices.translations(num_inference_steps=4))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_own_contour_agrees_and_another_does_not(prediction_type: str) -> None:
    rows = agreement(discs(), prediction_type=prediction_type)
    assert [row["partner"] for row in rows] == [1, 2, 3, 4, 0]
    for row in rows:
        assert row["own_f1"] == row["own_precision"] == row["own_recall"] == 1
        assert row["own_f1"] > row["shuffled_f1"]
        assert row["own_ssim"] > row["shuffled_ssim"]


def test_agreement_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    network = WithTime(nn.Conv2d(2, 1, 3, padding=1))
    by_batch_size = []
    for batch_size in (1, 2, 8):
        slices = held_out(discs(), network, batch_size=batch_size)
        by_batch_size.append(held_out_agreement(slices, slices.translations(num_inference_steps=4)))
    first = by_batch_size[0]
    assert 0 < first[0]["own_f1"] < 1
    for rows in by_batch_size[1:]:
        for row, expected in zip(rows, first, strict=True):
            assert row == pytest.approx(expected, abs=1e-4)


class WithTime(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_the_network_keeps_its_mode() -> None:
    network = Filler("epsilon").train()
    held_out(discs(2), network, prediction_type="epsilon").translations(num_inference_steps=1)
    assert network.training


@pytest.mark.parametrize("groups", [[0, 0, 0, 1, 1], [4, 4, 2, 2, 2, 2, 2, 9], list(range(6))])
def test_a_partner_is_of_another_group(groups: list[int]) -> None:
    slices = held_out(discs(1) * len(groups), Filler("epsilon"), groups=groups)
    partners = [
        row["partner"]
        for row in held_out_agreement(slices, [np.zeros((48, 48), np.float32)] * len(groups))
    ]
    assert all(groups[partner] != group for partner, group in zip(partners, groups, strict=True))
    assert all(0 <= partner < len(groups) for partner in partners)


def test_shuffling_needs_two_groups() -> None:
    with pytest.raises(ValueError, match="5 in 1 groups; hold out more patients"):
        agreement(discs(), groups=[7] * 5)
    with pytest.raises(ValueError, match="expected a group for each of 5 slices"):
        agreement(discs(), groups=[0, 1])


def test_a_summary_is_mean_and_standard_deviation() -> None:
    rows = [dict.fromkeys(COLUMNS, 1.0), dict.fromkeys(COLUMNS, 0.5)]
    assert summarize(rows) == {column: {"mean": 0.75, "std": 0.25} for column in COLUMNS}
    with pytest.raises(ValueError, match="expected rows of held_out_agreement, got none"):
        summarize([])


def test_files_of_the_agreement_are_written_whole(tmp_path: Path) -> None:
    slices = held_out(discs(), Filler("v_prediction"))
    translations = slices.translations(num_inference_steps=4)
    rows = held_out_agreement(slices, translations)
    write_agreement(rows, tmp_path / "new", {"tolerance_px": 2.0})
    agreement_picture(rows, slices, translations, tmp_path / "new/agreement.png")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "agreement.csv",
        "agreement.md",
        "agreement.png",
    ]
    with (tmp_path / "new/agreement.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [float(row["own_ssim"]) for row in read] == [row["own_ssim"] for row in rows]
    table = (tmp_path / "new/agreement.md").read_text(encoding="utf-8")
    assert "| f1 | 1.000 ± 0.000 |" in table
    assert "- tolerance_px: 2.0" in table
    assert (tmp_path / "new/agreement.png").read_bytes().startswith(PNG)


def write_mr(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:100, :100]
    body = ((y - 50) / 44) ** 2 + ((x - 50) / 36) ** 2 < 1
    bone = ((y - 40 - 4 * seed) / 12) ** 2 + ((x - 50) / 9) ** 2 < 1
    volume = np.stack(
        [body * (80 + 90.0 * bone) + rng.random((100, 100)) * (4 + 8 * body) for _ in range(3)]
    )
    nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([4.0, 2.2, 2.2, 1.0])), path)


@pytest.fixture
def mr_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mr"
    folder.mkdir()
    for seed in range(2):
        write_mr(folder / f"case{seed}.nii.gz", seed)
    (folder / "index.csv").write_text("file,split\ncase0.nii.gz,val\ncase1.nii.gz,val\n")
    return folder


@pytest.mark.slow
def test_a_bundle_is_evaluated_from_its_training_config(
    tmp_path: Path, mr_folder: Path, tiny_weights: Path
) -> None:
    summary = evaluate_bundle(
        TRAIN_CONFIG,
        str(tiny_weights),
        str(tmp_path / "out"),
        num_inference_steps=1,
        max_slices=4,
        network_def=TINY_NETWORK,
        filter_classes=3,
        dataset_dir=str(mr_folder),
        datalist="index.csv",
        device="cpu",
    )
    assert set(summary) == set(COLUMNS)
    with (tmp_path / "out/agreement.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["case0", "case0", "case1", "case1"]
    assert [row["partner"] for row in rows] == ["2", "3", "0", "1"]
    assert (tmp_path / "out/agreement.png").read_bytes().startswith(PNG)


def test_a_misspelled_setting_of_held_out_slices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data_dir"):
        evaluate_bundle(TRAIN_CONFIG, "model.pt", str(tmp_path), data_dir="mr")


def test_texture_is_what_smoothing_takes_away() -> None:
    noise = np.random.default_rng(0).normal(128, 10, (96, 80))
    assert texture_db(noise) == pytest.approx(20, abs=0.3)  # the variance of white noise
    assert texture_db(2 * noise) == pytest.approx(texture_db(noise) + 20 * np.log10(2))
    assert texture_db(gaussian_filter(noise, 2)) < texture_db(noise) - 20
