# SPDX-License-Identifier: Apache-2.0
"""The weights that ship with the bundle, on real images."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch

import contourdiff.bundle
from contourdiff.bundle import config_files, read_config, run_example, run_inference_config
from contourdiff.phantom import SHAPE, SPACING_MM, write_phantom
from contourdiff.weights import load_weights, sha256_of
from contourdiff_lab.held_out import evaluate_bundle
from helpers.paths import CONFIGS
from helpers.volumes import read_voxels, write_nifti

BUNDLE = CONFIGS.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overlays", "entry", "weights", "network"),
    [
        ((), "ckpt_path", "model.pt", "network_def"),
        ((), "refiner_path", "refiner.pt", "refiner_def"),
        (("fast",), "refiner_path", "refiner_fast.pt", "refiner_def"),
        (("draft",), "refiner_path", "refiner_fast.pt", "refiner_def"),
        (("hip_thigh",), "ckpt_path", "hip_thigh.pt", "network_def"),
    ],
)
def test_weights_are_small_strict_and_named_in_the_model_card(
    overlays: tuple[str, ...], entry: str, weights: str, network: str
) -> None:
    path = BUNDLE / "models" / weights
    assert path.stat().st_size <= 25e6
    parser = read_config(config_files(overlays=overlays), {})
    assert Path(parser.get_parsed_content(entry)) == path
    loaded = load_weights(parser.get_parsed_content(network), path)
    assert all(torch.isfinite(value).all() for value in loaded.state_dict().values())
    assert sha256_of(path) in (BUNDLE / "docs" / "README.md").read_text()


def test_no_weights_lie_about_without_a_card() -> None:
    names = {path.name for path in (BUNDLE / "models").iterdir()}
    assert names == {"hip_thigh.pt", "model.pt", "refiner.pt", "refiner_fast.pt"}


def test_shape_of_network_is_that_of_the_metadata() -> None:
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.json"),
        n=4,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("contrast", "overlay", "steps"), [("t1", "draft", 1), ("t2", "fast", 4)])
def test_translations_follow_their_own_contour_and_not_another_patients(
    contrast: str, overlay: str, steps: int, real_data: Path, tmp_path: Path
) -> None:
    """With the steps of the overlay."""
    summary = evaluate_bundle(
        str(CONFIGS / "train.json"),
        str(BUNDLE / "models" / "model.pt"),
        str(tmp_path),
        max_slices=4,
        tolerance_px=1.0,
        inference=config_files(overlays=[overlay]),
        translation={"contrast": contrast},
        dataset_dir=str(real_data / "mr_lumbar"),
        datalist="index.csv",
        file_pattern=f"{contrast}/*",
    )
    assert summary["own_f1"]["mean"] > summary["shuffled_f1"]["mean"] + 0.2
    assert summary["own_ssim"]["mean"] > summary["shuffled_ssim"]["mean"] + 0.1
    assert f"- num_inference_steps: {steps}\n" in (tmp_path / "agreement.md").read_text()


@pytest.mark.slow
def test_real_ct_keeps_grid_and_labels_and_looks_like_t1(real_data: Path, tmp_path: Path) -> None:
    """Four sagittal slices of a real CT: fat and vertebrae are bright, air is black."""
    source = nib.load(real_data / "ct" / "torso_ct.nii.gz")
    ct = np.asarray(source.dataobj)[58:62]
    classes = read_voxels(real_data / "ct" / "torso_vertebrae.nii.gz")[58:62]
    affine = source.affine.copy()
    affine[:3, 3] += 58 * affine[:3, 0]
    write_nifti(tmp_path / "ct" / "slab.nii.gz", ct, affine)
    write_nifti(tmp_path / "ct" / "labels" / "slab.nii.gz", classes, affine)
    output_dir = run_inference_config(
        tmp_path / "ct", tmp_path / "mr", overlays=("fast",), logging_file=False
    )
    mr = nib.load(output_dir / "slab_mr.nii.gz")
    np.testing.assert_array_equal(mr.affine, nib.load(tmp_path / "ct" / "slab.nii.gz").affine)
    np.testing.assert_array_equal(read_voxels(output_dir / "slab_label.nii.gz"), classes)
    gray = np.asarray(mr.dataobj)
    fat = gray[(ct > -130) & (ct < -70)].mean()
    vertebrae = gray[classes > 0].mean()
    air = gray[ct < -900].mean()
    assert air < 25
    assert fat > air + 40
    assert vertebrae > air + 40


@pytest.mark.slow
def test_real_hips_keep_their_grid_and_look_like_t1(real_data: Path, tmp_path: Path) -> None:
    """Four axial slices of a real CT: fat is brighter than muscle, air is black, edges are where the CT has them."""
    source = nib.load(real_data / "ct" / "hip_torso_ct.nii.gz")
    ct = np.asarray(source.dataobj)[:, :, 4:8]
    affine = source.affine.copy()
    affine[:3, 3] += 4 * affine[:3, 2]
    write_nifti(tmp_path / "ct" / "hip.nii.gz", ct, affine)
    output_dir = run_inference_config(
        tmp_path / "ct", tmp_path / "mr", overlays=("hip_thigh", "draft"), logging_file=False
    )
    mr = nib.load(output_dir / "hip_mr.nii.gz")
    np.testing.assert_array_equal(mr.affine, nib.load(tmp_path / "ct" / "hip.nii.gz").affine)
    gray = np.asarray(mr.dataobj)
    fat = gray[(ct > -130) & (ct < -70)].mean()
    muscle = gray[(ct > 30) & (ct < 80)].mean()
    assert gray[ct < -900].mean() < 25
    assert fat > muscle + 40
    fidelity = json.loads((output_dir / "hip_mr.json").read_text())["fidelity"]
    assert fidelity["fidelity_median"] > 0.75
    assert fidelity["suspects"] == []


@pytest.mark.slow
def test_the_example_of_the_readme_keeps_grid_and_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six thick slices instead of 48."""
    phantom = partial(write_phantom, shape=(6, *SHAPE[1:]), spacing_mm=(32.0, *SPACING_MM[1:]))
    monkeypatch.setattr(contourdiff.bundle, "write_phantom", phantom)
    output_dir = run_example(tmp_path / "example")
    record = json.loads((output_dir / "phantom_mr.json").read_text())
    assert any(not entry["skipped"] for entry in record["slices"])
    ct_dir = tmp_path / "example" / "ct"
    mr = nib.load(output_dir / "phantom_mr.nii.gz")
    np.testing.assert_array_equal(mr.affine, nib.load(ct_dir / "phantom.nii.gz").affine)
    label = read_voxels(output_dir / "phantom_label.nii.gz")
    np.testing.assert_array_equal(label, read_voxels(ct_dir / "labels" / "phantom.nii.gz"))
    assert np.asarray(mr.dataobj)[label > 0].mean() > 30
