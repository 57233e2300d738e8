# SPDX-License-Identifier: Apache-2.0
"""Files beside a translation: once read, never more resampled than shown, and complete before the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImage

from contourdiff.data.planes import ResampledPlanes
from contourdiff.inference import outputs
from contourdiff.inference.outputs import Maps, TranslationOutputs
from contourdiff.inference.preview import Preview, filled_slices
from helpers.runs import run_tiny_inference
from helpers.volumes import CASE_NAMES, OBLIQUE, ball_ct, make_dataset, write_nifti


@pytest.mark.slow
def test_weights_are_hashed_once_for_all_cases(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    sha256_of = outputs.sha256_of
    monkeypatch.setattr(
        outputs, "sha256_of", lambda path: hashed.append(str(path)) or sha256_of(path)
    )
    run_tiny_inference(make_dataset(tmp_path / "ct"), tmp_path / "mr", tiny_weights)
    assert hashed == [str(tiny_weights)]
    assert len(list((tmp_path / "mr").glob("*_mr.json"))) == len(CASE_NAMES)


@pytest.mark.parametrize("columns", [1, 7])
def test_only_planes_that_are_shown_are_resampled(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CT, MR and label: one plane each a column, whatever the number of slices."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(-100, 200, (60, 20, 18)).astype(np.int16)
    source = write_nifti(tmp_path / "a.nii.gz", voxels, OBLIQUE)
    label = write_nifti(tmp_path / "labels" / "a.nii.gz", (voxels > 100).astype(np.uint8), OBLIQUE)
    contours = LoadImage(image_only=True, ensure_channel_first=True)(source) > 0
    planes: list[str] = []
    plane = ResampledPlanes.plane

    def counted(
        self: ResampledPlanes, target: MetaTensor, axis: int, position: int, mode: str
    ) -> np.ndarray:
        planes.append(mode)
        return plane(self, target, axis, position, mode)

    monkeypatch.setattr(ResampledPlanes, "plane", counted)
    Preview(columns=columns).save(
        tmp_path / "a.png", source, label, contours.float(), contours.float() * 100
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert planes.count("bilinear") == 2 * columns
    assert planes.count("nearest") == columns


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAL", "IRP"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_filled_slices_are_those_of_the_label_resampled_to_the_target(
    axcodes: str, axis: int, tmp_path: Path
) -> None:
    """Counted on the label's own grid, whatever its orientation."""
    voxels = np.zeros((9, 10, 11), np.uint8)
    voxels[2:5, 3:8, 9] = voxels[7, 4, 1] = 3
    upright = nib.Nifti1Image(voxels, OBLIQUE)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(OBLIQUE), nib.orientations.axcodes2ornt(tuple(axcodes))
    )
    turned = upright.as_reoriented(turn)
    path = write_nifti(tmp_path / "label.nii.gz", np.asarray(turned.dataobj), turned.affine)
    target = MetaTensor(torch.zeros(1, *voxels.shape), affine=torch.as_tensor(OBLIQUE))
    planes = ResampledPlanes(path)
    expected = [
        i for i in range(voxels.shape[axis]) if planes.plane(target, axis, i, "nearest").any()
    ]
    assert filled_slices(path, target, axis).tolist() == expected


def test_an_empty_label_shows_the_first_slice(tmp_path: Path) -> None:
    empty = write_nifti(tmp_path / "empty.nii.gz", np.zeros((5, 8, 8), np.uint8), OBLIQUE)
    volume = MetaTensor(torch.zeros(1, 5, 8, 8), affine=torch.as_tensor(OBLIQUE))
    assert filled_slices(empty, volume, 0).tolist() == []
    Preview().save(tmp_path / "a.png", empty, empty, volume, volume)
    assert (tmp_path / "a.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["A.NII.GZ", "a.nii.gz", "a.nii"])
def test_all_files_of_a_case_have_one_name(name: str, tiny_weights: Path, tmp_path: Path) -> None:
    """Whatever the spelling of the suffix."""
    dataset_dir = tmp_path / "ct"
    written = write_nifti(dataset_dir / name.lower(), ball_ct((10, 30, 26)), OBLIQUE)
    written.rename(dataset_dir / name)
    output_dir = run_tiny_inference(
        dataset_dir, tmp_path / "mr", tiny_weights, save_fidelity_map=True
    )
    case = name.split(".")[0]
    ends = ("fidelity.nii.gz", "mr.json", "mr.nii.gz", "mr.png")
    assert {path.name for path in output_dir.iterdir()} == {
        "run.json",
        *(f"{case}_{end}" for end in ends),
    }


def test_a_map_requires_what_it_is_computed_from(tiny_weights: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "output_dir": tmp_path,
        "ckpt_path": tmp_path / "model.pt",
        "settings": {},
    }
    with pytest.raises(ValueError, match="the fidelity map requires a check, got None"):
        TranslationOutputs(**arguments, maps=Maps(Compose([]), fidelity=True))
    without_spread = {"save_uncertainty_map": True, "inferer#keep_spread": False}
    with pytest.raises(
        ValueError, match="requires an inferer with keep_spread=True, got VolumeInferer without"
    ):
        run_tiny_inference(
            make_dataset(tmp_path / "ct", ("a",)), tmp_path / "mr", tiny_weights, **without_spread
        )
    assert list((tmp_path / "mr").iterdir()) == []
