# SPDX-License-Identifier: Apache-2.0
"""CT and real MR of one person: a known shift is found, and the residual and the comparison are what they say."""

from __future__ import annotations

import json
from importlib.metadata import distributions
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from contourdiff_lab import paired_truth
from contourdiff_lab.paired_truth import (
    OUTSIDE,
    boundary_distance_mm,
    center_mm,
    moved,
    place,
    read_image,
    register,
    similarity_of_others,
)

HAS_ELASTIX = any(True for _ in distributions(name="itk-elastix"))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ELASTIX, reason="itk-elastix is not installed")
def test_a_known_shift_is_found(real_data: Path) -> None:
    """The volunteer's T2 against his own T1 moved by 9 mm: both scans have one grid of coordinates."""
    fixed = read_image(real_data / "mr_volunteer" / "volunteer_t2.nii.gz", 2.0)
    moving = read_image(real_data / "mr_volunteer" / "volunteer_t1.nii.gz", 2.0)
    start = center_mm(moving)
    place({"t1": moving}, np.array([0.0, 5.0, -7.5]))
    np.testing.assert_allclose(center_mm(moving) - start, [0, 5, -7.5], atol=1e-4)
    transform = register(fixed, moving, ("rigid",))
    found_mm = [float(text) for text in transform.GetParameter(0, "TransformParameters")[3:]]
    np.testing.assert_allclose(found_mm, [0, 5, -7.5], atol=1.5)
    on_fixed = moved(moving, transform)
    assert on_fixed.shape == moved(moving, transform, is_label=True).shape
    assert (on_fixed > OUTSIDE + 1).mean() > 0.8


def test_the_residual_is_the_distance_of_boundary_and_contour() -> None:
    """A label of 4 x 4 pixels and a line 3 rows above its upper edge."""
    label = np.zeros((1, 20, 20))
    label[0, 8:12, 8:12] = 1
    contours = np.zeros((1, 20, 20))
    contours[0, 5] = 1
    rows = [8] * 4 + [9] * 2 + [10] * 2 + [11] * 4  # of the twelve boundary pixels
    expected = np.mean([2.0 * (row - 5) for row in rows])
    assert boundary_distance_mm(label, contours, (2.0, 1.0)) == pytest.approx(expected)
    assert np.isnan(boundary_distance_mm(0 * label, contours, (2.0, 1.0)))


def test_others_are_shifted_to_fit_best() -> None:
    """Another slice that is the same but for its place is as similar as can be; noise is not."""
    random = np.random.default_rng(0)
    real = np.zeros((60, 60))
    real[20:40, 25:35] = 1
    real += 0.05 * random.random(real.shape)
    mask = np.ones(real.shape, dtype=bool)
    same, noise = similarity_of_others(
        real, mask, [np.roll(real, (7, -4), axis=(0, 1)), random.random(real.shape)]
    )
    assert same["ncc"] == pytest.approx(1)
    assert noise["ncc"] < 0.3


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ELASTIX, reason="itk-elastix is not installed")
def test_a_person_is_compared_with_himself(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The volunteer's T1 in place of the CT: 40 mm off, found from a start above; T2 is like itself, T1 less so."""
    monkeypatch.setattr(paired_truth, "ITERATIONS", 60)
    monkeypatch.setattr(paired_truth, "STARTS_MM", (-36.0, 0.0))
    volumes = {}
    for contrast in ("t1", "t2"):
        image = nib.load(real_data / "mr_volunteer" / f"volunteer_{contrast}.nii.gz")
        volumes[contrast] = nib.Nifti1Image(
            np.asarray(image.dataobj, dtype=np.float32)[::3, ::3],
            image.affine @ np.diag([3, 3, 1, 1]),
        )
        nib.save(volumes[contrast], tmp_path / f"{contrast}.nii.gz")
    t1 = volumes["t1"]
    raised = t1.affine.copy()
    raised[2, 3] += 40
    levels = t1.get_fdata()
    for name, data in (("ct", levels), ("label", levels > np.percentile(levels, 85))):
        nib.save(nib.Nifti1Image(data.astype(np.float32), raised), tmp_path / f"{name}.nii.gz")
    page = paired_truth.compare_with_real_mr(
        tmp_path / "ct.nii.gz",
        tmp_path / "label.nii.gz",
        tmp_path / "t2.nii.gz",
        {"inverse": tmp_path / "label.nii.gz"},
        tmp_path / "out",
        start_mm=(0, 0, 40),
    )
    record = json.loads((tmp_path / "out" / "paired.json").read_text())
    assert record["similarity"]["ct"]["gradient_correlation"] > 0.2
    residual = record["residual"]["rigid"]
    assert residual["mm"] < residual["by_chance_mm"]
    shared = record["mutual_information"]
    assert shared["-36"] > shared["0"]
    assert "residual, bspline" in page.read_text()
