# SPDX-License-Identifier: Apache-2.0
"""Translations in nnU-Net's raw format: images unchanged, labels as classes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from contourdiff.cli import main
from helpers.runs import run_tiny_inference
from helpers.volumes import CASE_NAMES, assert_same_grid, make_dataset, read_voxels


@pytest.fixture(scope="module")
def translations(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Path:
    folder = tmp_path_factory.mktemp("nnunet")
    return run_tiny_inference(
        make_dataset(folder / "ct"), folder / "mr", tiny_weights, candidates=1, max_rounds=1
    )


@pytest.mark.slow
def test_an_nnunet_data_set_has_images_labels_and_classes(
    translations: Path, tmp_path: Path
) -> None:
    target = tmp_path / "Dataset007_Spine"
    main(["to-nnunet", str(translations), str(target)])
    content = json.loads((target / "dataset.json").read_text())
    assert content == {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "vertebra": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    for name in CASE_NAMES:
        image, label = (
            target / "imagesTr" / f"{name}_0000.nii.gz",
            target / "labelsTr" / f"{name}.nii.gz",
        )
        assert image.read_bytes() == (translations / f"{name}_mr.nii.gz").read_bytes()
        np.testing.assert_array_equal(
            read_voxels(label), read_voxels(translations / f"{name}_label.nii.gz") > 0
        )
        assert nib.load(label).get_data_dtype() == np.uint8
        assert_same_grid(nib.load(label), nib.load(translations / f"{name}_label.nii.gz"))
    with pytest.raises(SystemExit, match="expected a new or an empty folder"):
        main(["to-nnunet", str(translations), str(target)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mr", "spine"], "expected a folder named like Dataset001_Name"),
        (["mr", "mr", "Dataset001_X"], r"expected every case once, got twice: \['a', 'b', 'c'\]"),
        (["mr", "Dataset001_X", "--label_map", "none.json"], "expected a label map at none.json"),
    ],
)
def test_what_nnunet_would_not_read_is_refused(
    translations: Path,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mr").symlink_to(translations)
    with pytest.raises(SystemExit, match=message):
        main(["to-nnunet", *arguments])
    assert [path.name for path in tmp_path.iterdir()] == ["mr"]
