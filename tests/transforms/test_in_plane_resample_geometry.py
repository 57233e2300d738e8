# SPDX-License-Identifier: Apache-2.0
"""The bundle's own preprocessing and postprocessing bring every volume back to exactly the grid it came from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from helpers.volumes import assert_same_grid, ball_ct, oblique_affine, write_nifti

ORIENTATIONS = [
    "".join(letters[number] for letters, number in zip(pairs, flips, strict=True))
    for pairs in itertools.permutations(("RL", "AP", "SI"))
    for flips in itertools.product((0, 1), repeat=3)
]


def there_and_back(
    parser: ConfigParser, path: Path, output_dir: Path
) -> tuple[MetaTensor, nib.Nifti1Image]:
    preprocessing = parser.get_parsed_content("preprocessing")
    postprocessing = parser.get_parsed_content("postprocessing")
    data = preprocessing({"image": str(path)})
    contour = data["image"]
    smooth = torch.cumsum(torch.ones_like(contour), dim=2) + contour
    postprocessing({**data, "pred": smooth})
    return contour, nib.load(output_dir / path.name.replace(".nii.gz", "_mr.nii.gz"))


@pytest.mark.slow
@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_a_volume_of_every_orientation_returns_to_its_grid(
    axcodes: str, inference_parser: Callable[..., ConfigParser], tmp_path: Path
) -> None:
    affine = oblique_affine((2.5, 2.0, 3.1))
    upright = nib.Nifti1Image(ball_ct((16, 26, 22)), affine)
    turned = upright.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axcodes))
        )
    )
    path = write_nifti(tmp_path / "case.nii.gz", np.asarray(turned.dataobj), turned.affine)
    parser = inference_parser(
        output_dir=str(tmp_path), bundle_root=str(tmp_path), min_object_mm2=100.0, filter_classes=2
    )
    contour, result = there_and_back(parser, path, tmp_path)
    assert nib.aff2axcodes(nib.load(path).affine) == tuple(axcodes)
    assert_same_grid(result, nib.load(path))
    assert contour.shape[1] == 16
    # the ramp that was made along posterior-anterior in the model's grid runs along it in the file, too
    data = nib.as_closest_canonical(result).get_fdata()[2:-2, 2:-2, 2:-2]
    assert (np.diff(data.mean(axis=(0, 2))) > 0).all()


def test_a_volume_with_gantry_tilt_returns_to_its_grid(
    inference_parser: Callable[..., ConfigParser], tmp_path: Path
) -> None:
    affine = oblique_affine((2.5, 2.0, 3.1))
    affine[:3, 2] += 0.3 * affine[:3, 1]
    path = write_nifti(tmp_path / "case.nii.gz", ball_ct((16, 26, 22)), affine)
    parser = inference_parser(
        output_dir=str(tmp_path), bundle_root=str(tmp_path), min_object_mm2=100.0, filter_classes=2
    )
    assert_same_grid(there_and_back(parser, path, tmp_path)[1], nib.load(path))


def test_the_hip_overlay_slices_along_its_axis(
    inference_parser: Callable[..., ConfigParser], tmp_path: Path
) -> None:
    affine = np.diag([3.0, 2.5, 5.0, 1.0])
    path = write_nifti(tmp_path / "case.nii.gz", ball_ct((20, 24, 12)), affine)
    parser = inference_parser(
        "hip_thigh", output_dir=str(tmp_path), bundle_root=str(tmp_path), min_object_mm2=100.0
    )
    contour, result = there_and_back(parser, path, tmp_path)
    axis = parser.get_parsed_content("slice_axis")
    assert contour.shape[1 + axis] == (20, 24, 12)[axis]
    in_plane = [float(contour.pixdim[other]) for other in range(3) if other != axis]
    assert in_plane == pytest.approx([parser.get_parsed_content("spacing_mm")] * 2)
    assert_same_grid(result, nib.load(path))


def test_a_result_on_another_grid_is_not_saved(
    inference_parser: Callable[..., ConfigParser], tmp_path: Path
) -> None:
    path = write_nifti(
        tmp_path / "case.nii.gz", ball_ct((16, 26, 22)), np.diag([3.0, 3.0, 3.0, 1.0])
    )
    parser = inference_parser(output_dir=str(tmp_path), bundle_root=str(tmp_path))
    save = parser.get_parsed_content("postprocessing").transforms[-1]
    moved = MetaTensor(torch.zeros(1, 16, 26, 22), affine=np.diag([3.0, 3.0, 4.0, 1.0]))
    moved.meta["filename_or_obj"] = str(path)
    with pytest.raises(RuntimeError, match="the result is not on the grid of"):
        save({"pred": moved})
    assert sorted(tmp_path.iterdir()) == [path]
