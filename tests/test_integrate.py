# SPDX-License-Identifier: Apache-2.0
"""Other programs take translations as the page on integration shows; those that are not installed are left out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from contourdiff.cli import main
from helpers.paths import REPOSITORY
from helpers.volumes import write_nifti

PAGE = REPOSITORY / "docs" / "integrate.md"
L4 = 28


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pairs of sagittal slices in ``mr``, and the working directory around it."""
    random = np.random.default_rng(0)
    affine = np.diag([4.0, 1.1, 1.1, 1.0])
    for name in ("a", "b"):
        label = np.zeros((3, 72, 80), np.uint8)
        label[:, 20:50, 30:60] = L4
        mr = random.normal(60, 10, label.shape) + 100 * (label > 0)
        write_nifti(tmp_path / "mr" / f"{name}_mr.nii.gz", mr.astype(np.float32), affine)
        write_nifti(tmp_path / "mr" / f"{name}_label.nii.gz", label, affine)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def block(heading: str) -> str:
    """The Python of a section of the page."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.S)[0]


def test_torchio_reads_pairs(folder: Path) -> None:
    torchio = pytest.importorskip("torchio", reason="TorchIO is not installed")
    names: dict = {}
    exec(compile(block("TorchIO"), "integrate.md", "exec"), names)
    subject = names["subjects"][0]
    assert subject.spatial_shape == (3, 72, 80)
    label = subject["label"][torchio.DATA]
    image = subject["image"][torchio.DATA].float()
    assert image[label > 0].mean() > image[label == 0].mean() + 50


def test_nnunet_accepts_the_data_set(folder: Path) -> None:
    check = pytest.importorskip(
        "nnunetv2.experiment_planning.verify_dataset_integrity", reason="nnU-Net is not installed"
    )
    main(["to-nnunet", "mr", "raw/Dataset001_Spine"])
    check.verify_dataset_integrity(str(folder / "raw" / "Dataset001_Spine"), num_processes=1)
    content = folder / "raw" / "Dataset001_Spine" / "dataset.json"
    wrong = json.loads(content.read_text()) | {"labels": {"background": 0}}
    content.write_text(json.dumps(wrong))
    with pytest.raises(RuntimeError):
        check.verify_dataset_integrity(str(content.parent), num_processes=1)
