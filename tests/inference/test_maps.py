# SPDX-License-Identifier: Apache-2.0
"""Maps lie on the CT's grid, and say what the record says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from helpers.runs import run_tiny_inference
from helpers.volumes import assert_same_grid, ball_ct, oblique_affine, write_nifti


def run(folder: Path, weights: Path, **settings: object) -> Path:
    """The run of the other tests, with a single round."""
    return run_tiny_inference(
        folder / "ct", folder / "mr", weights, **{"max_rounds": 1, **settings}
    )


@pytest.mark.slow
def test_an_unconditional_translation_differs_and_is_recorded(
    tiny_weights: Path, tmp_path: Path
) -> None:
    write_nifti(tmp_path / "ct" / "a.nii.gz", ball_ct((6, 26, 22)), oblique_affine((3.0, 2.2, 2.2)))
    images = []
    for unconditional in (False, True):
        run(tmp_path, tiny_weights, unconditional=unconditional, overwrite=True)
        settings = json.loads((tmp_path / "mr" / "a_mr.json").read_text())["settings"]
        assert settings["unconditional"] is unconditional
        assert settings["save_fidelity_map"] is settings["save_uncertainty_map"] is False
        images.append(np.asarray(nib.load(tmp_path / "mr" / "a_mr.nii.gz").dataobj))
    assert not np.array_equal(*images)


@pytest.mark.slow
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAL", "IRP"])
def test_maps_lie_on_the_grid_of_an_oblique_ct_of_odd_orientation(
    axcodes: str, tiny_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    affine = oblique_affine((3.0, 2.2, 2.2))
    upright = nib.Nifti1Image(ball_ct((9, 26, 22)), affine)
    turned = upright.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axcodes))
        )
    )
    path = write_nifti(tmp_path / "ct" / "a.nii.gz", np.asarray(turned.dataobj), turned.affine)
    run(
        tmp_path,
        tiny_weights,
        save_fidelity_map=True,
        save_uncertainty_map=True,
        fidelity_limit=1.0,
    )
    record = json.loads((tmp_path / "mr" / "a_mr.json").read_text())
    source, codes, spread = (
        nib.load(file)
        for file in (
            path,
            *(tmp_path / "mr" / f"a_{name}.nii.gz" for name in ("fidelity", "uncertainty")),
        )
    )
    for image, dtype in ((codes, np.uint8), (spread, np.float32)):
        assert_same_grid(image, source)
        assert image.get_data_dtype() == dtype
    # the model's grid is the CT's here but for its orientation, so each code and share can be counted in the file
    data = np.asarray(nib.as_closest_canonical(codes).dataobj)
    assert set(np.unique(data)) <= {0, 1, 2, 3}
    checked = [entry for entry in record["slices"] if not entry["skipped"]]
    assert len(checked) >= 5
    for entry in checked:
        given = np.isin(data[entry["slice"]], (1, 3))
        assert (data[entry["slice"]] == 3).sum() / given.sum() == pytest.approx(
            entry["lost"], abs=1e-6
        )
        assert entry["suspect"] == (entry["fidelity"] < 1.0)
    assert all("invented" not in entry for entry in record["slices"] if entry["skipped"])
    assert record["fidelity"]["checked"] == len(checked)
    suspects = record["fidelity"]["suspects"]
    assert suspects == [entry["slice"] for entry in checked if entry["suspect"]]
    named = ", ".join(map(str, suspects))
    expected = f"a: {len(suspects)} of {len(checked)} slices below the fidelity limit (slices {named}): look at them"
    assert expected in caplog.text
    deviation = np.asarray(spread.dataobj)
    assert deviation.min() >= 0
    assert deviation.max() > 1
    assert np.isfinite(deviation).all()


@pytest.mark.slow
def test_fidelity_codes_stay_codes_on_a_finer_and_a_coarser_grid(
    inference_parser: Callable[..., ConfigParser], tiny_weights: Path, tmp_path: Path
) -> None:
    for number, size_mm in enumerate((1.3, 3.7)):
        write_nifti(
            tmp_path / "ct" / f"{number}.nii.gz",
            ball_ct((6, 40, 36)),
            oblique_affine((3.0, size_mm, size_mm)),
        )
    run(tmp_path, tiny_weights, save_fidelity_map=True)
    for number in range(2):
        codes = nib.load(tmp_path / "mr" / f"{number}_fidelity.nii.gz")
        assert_same_grid(codes, nib.load(tmp_path / "ct" / f"{number}.nii.gz"))
        assert {1, 2} <= set(np.unique(np.asarray(codes.dataobj))) <= {0, 1, 2, 3}
        assert not (tmp_path / "mr" / f"{number}_uncertainty.nii.gz").exists()


def test_an_uncertainty_map_of_single_candidates_ends_before_any_work(
    tiny_weights: Path, tmp_path: Path
) -> None:
    write_nifti(tmp_path / "ct" / "a.nii.gz", ball_ct((6, 26, 22)), oblique_affine((3.0, 2.2, 2.2)))
    with pytest.raises(
        ValueError,
        match="an uncertainty map requires 2 candidates a slice or more, got 1 from",
    ):
        run(tmp_path, tiny_weights, save_uncertainty_map=True, candidates=1, max_rounds=1)
    assert list((tmp_path / "mr").glob("*")) == []
