# SPDX-License-Identifier: Apache-2.0
"""A BIDS dataset in, a derivative dataset out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from contourdiff.data.bids import bids_inputs, write_derivatives
from helpers.runs import run_tiny_inference
from helpers.volumes import OBLIQUE, ball_ct, read_voxels, write_nifti

CT = ball_ct((10, 30, 26))


def dataset(root: Path) -> Path:
    """Two subjects, one with two sessions; one label beside its CT, one in a derivative, of run 1 and not of run 10."""
    for name in (
        "sub-01/ct/sub-01_run-1_ct",
        "sub-01/ct/sub-01_run-10_ct",
        "sub-02/ses-a/ct/sub-02_ses-a_ct",
    ):
        write_nifti(root / f"{name}.nii.gz", CT, OBLIQUE)
    label = (CT > 200).astype(np.uint8)
    write_nifti(root / "sub-02" / "ses-a" / "ct" / "sub-02_ses-a_dseg.nii.gz", label, OBLIQUE)
    write_nifti(
        root / "derivatives" / "seg" / "sub-01" / "ct" / "sub-01_run-1_desc-bone_dseg.nii.gz",
        label,
        OBLIQUE,
    )
    (root / "dataset_description.json").write_text('{"Name": "two", "BIDSVersion": "1.10.0"}')
    return root


def test_bids_ct_and_labels_are_found_by_their_entities(tmp_path: Path) -> None:
    assert bids_inputs(tmp_path) == []
    found = {image.name: label and label.name for image, label in bids_inputs(dataset(tmp_path))}
    assert found == {
        "sub-01_run-1_ct.nii.gz": "sub-01_run-1_desc-bone_dseg.nii.gz",
        "sub-01_run-10_ct.nii.gz": None,
        "sub-02_ses-a_ct.nii.gz": "sub-02_ses-a_dseg.nii.gz",
    }
    other = tmp_path / "derivatives" / "other" / "sub-01" / "ct" / "sub-01_run-1_dseg.nii.gz"
    write_nifti(other, CT, OBLIQUE)
    with pytest.raises(
        ValueError,
        match=r"expected one label of sub-01_run-1_ct.nii.gz, found \['derivatives/other/",
    ):
        bids_inputs(tmp_path)


def test_translations_become_a_derivative_dataset(tiny_weights: Path, tmp_path: Path) -> None:
    root, bids_dir = dataset(tmp_path / "raw"), tmp_path / "raw" / "derivatives" / "contourdiff"
    output_dir = run_tiny_inference(
        root, tmp_path / "mr", tiny_weights, bids_dir=str(bids_dir), num_inference_steps=1
    )
    names = sorted(
        path.relative_to(bids_dir).as_posix() for path in bids_dir.rglob("*") if path.is_file()
    )
    first, second = "sub-01/anat/sub-01_run-", "sub-02/ses-a/anat/sub-02_ses-a_desc-contourdiff_"
    assert names == [
        "README",
        "dataset_description.json",
        *(
            f"{first}{end}"
            for end in ("10_desc-contourdiff_T1w.json", "10_desc-contourdiff_T1w.nii.gz")
        ),
        *(
            f"{first}1_desc-contourdiff_{end}"
            for end in ("T1w.json", "T1w.nii.gz", "dseg.json", "dseg.nii.gz")
        ),
        *(f"{second}{end}" for end in ("T1w.json", "T1w.nii.gz", "dseg.json", "dseg.nii.gz")),
    ]
    mr = read_voxels(output_dir / "sub-02_ses-a_ct_mr.nii.gz")
    np.testing.assert_array_equal(read_voxels(bids_dir / f"{second}T1w.nii.gz"), mr)
    sidecar = json.loads((bids_dir / f"{second}T1w.json").read_text())
    assert (sidecar["SkullStripped"], sidecar["Sources"]) == (False, ["sub-02_ses-a_ct.nii.gz"])
    assert (
        json.loads((bids_dir / "dataset_description.json").read_text())["DatasetType"]
        == "derivative"
    )
    (bids_dir / "README").write_text("mine")
    run_tiny_inference(
        root, output_dir, tiny_weights, bids_dir=str(bids_dir)
    )  # what was written is no second label of a CT
    assert (bids_dir / "README").read_text() == "mine"


def test_each_contrast_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Although two are T2-weighted."""
    records = []
    for level, contrast in enumerate(("t1", "t2", "t2_space")):
        name = f"sub-01_ct_{contrast}"
        write_nifti(tmp_path / f"{name}_mr.nii.gz", np.full((4, 4, 4), level, np.uint8), OBLIQUE)
        record = {
            "case": "sub-01_ct",
            "image": "sub-01_ct.nii.gz",
            "label": None,
            "settings": {"contrast": contrast},
        }
        path = tmp_path / f"{name}_mr.json"
        path.write_text(json.dumps(record))
        records.append(path)
    write_derivatives(records, tmp_path / "bids")
    anat = tmp_path / "bids" / "sub-01" / "anat"
    for level, ending in enumerate(("_T1w", "_T2w", "space_T2w")):
        mr = read_voxels(anat / f"sub-01_desc-contourdiff{ending}.nii.gz")
        assert np.all(mr == level)


def test_cases_without_a_subject_are_refused_before_any_work(
    tiny_weights: Path, tmp_path: Path
) -> None:
    write_nifti(tmp_path / "ct" / "anna.nii.gz", CT, OBLIQUE)
    with pytest.raises(
        ValueError, match=r"expected cases sub-<label>_..._ct for a BIDS dataset, got \['anna'\]"
    ):
        run_tiny_inference(
            tmp_path / "ct", tmp_path / "mr", tiny_weights, bids_dir=str(tmp_path / "bids")
        )
    assert not (tmp_path / "mr").exists()
