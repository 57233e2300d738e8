# SPDX-License-Identifier: Apache-2.0
"""The same case, seed and settings give the same MR from version to version.

``golden/translations.npz`` holds translations of the digital phantom and of 24 slices of a real torso CT, subsampled,
with the shipped weights and torch's own float32, whatever engine is the default. On one machine they are equal to the
bit; between processors convolutions and resampling round differently, so that a few contour pixels may come or go.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from contourdiff.bundle import run_inference_config
from contourdiff.phantom import write_phantom

GOLDEN = Path(__file__).parent / "golden" / "translations.npz"
TOLERANCE = 0.2
"""Gray levels; the file holds half precision."""
COMMON: dict[str, Any] = {
    "device": "$torch.device('cpu')",
    "num_inference_steps": 2,
    "num_refinement_steps": 1,
    "acceleration": None,
    "amp": False,
    "preview": None,
}


def assert_golden(case: str, output_dir: Path) -> None:
    mr = np.asarray(nib.load(output_dir / f"{case}_mr.nii.gz").dataobj)
    slices = json.loads((output_dir / f"{case}_mr.json").read_text())["slices"]
    choices = [
        (-1, -1) if item["skipped"] else (item["round"], item["candidate"]) for item in slices
    ]
    with np.load(GOLDEN) as golden:
        step, expected = int(golden[f"{case}_step"]), golden[case].astype(np.float32)
        assert choices == [tuple(pair) for pair in golden[f"{case}_choices"].tolist()]
        assert mr.mean(dtype=np.float64) == pytest.approx(
            float(golden[f"{case}_mean"]), abs=TOLERANCE
        )
    difference = np.abs(mr[::step, ::step, ::step] - expected)
    assert np.mean(difference > TOLERANCE) < 0.01


@pytest.mark.slow
def test_phantom(tmp_path: Path) -> None:
    write_phantom(tmp_path / "ct")
    run_inference_config(tmp_path / "ct", tmp_path / "mr", candidates=1, max_rounds=1, **COMMON)
    assert_golden("phantom", tmp_path / "mr")


@pytest.mark.slow
def test_torso(tmp_path: Path, real_data: Path) -> None:
    (tmp_path / "ct").mkdir()
    nib.save(
        nib.load(real_data / "ct" / "torso_ct.nii.gz").slicer[49:73],
        tmp_path / "ct" / "torso.nii.gz",
    )
    run_inference_config(tmp_path / "ct", tmp_path / "mr", candidates=2, max_rounds=2, **COMMON)
    assert_golden("torso", tmp_path / "mr")
