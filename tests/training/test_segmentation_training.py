# SPDX-License-Identifier: Apache-2.0
"""Segmentation configs: the best weights by held-out patients, and scores on the MR's own grid."""

from __future__ import annotations

import json
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from helpers.paths import CONFIGS
from helpers.volumes import write_nifti

TRAIN = str(CONFIGS / "segmentation_train.json")
LABEL_MAP = str(CONFIGS.parent / "label_maps" / "vertebrae.json")
AFFINE = np.diag([4.0, 2.0, 2.0, 1.0])


def write_case(root: Path, image: str, label: str, name: str, value: int, seed: int) -> None:
    """Two sagittal slices with a bright square, which is the class."""
    random = np.random.default_rng(seed)
    classes = np.zeros((2, 70, 70), dtype=np.uint8)
    row, column = random.integers(15, 35, 2)
    classes[:, row : row + 20, column : column + 20] = value
    gray = (classes > 0) * 150.0 + 60 + random.normal(0, 5, classes.shape)
    write_nifti(root / image.format(name), gray.astype(np.float32), AFFINE)
    write_nifti(root / label.format(name), classes, AFFINE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("segmentation")
    for number in range(5):
        write_case(root / "mr", "{}_mr.nii.gz", "{}_label.nii.gz", f"p{number}", 30, number)
    monai.bundle.run(
        config_file=TRAIN,
        dataset_dir=str(root / "mr"),
        output_dir=str(root / "out"),
        max_epochs=20,
        val_interval=4,
    )
    return root


@pytest.mark.slow
def test_held_out_patients_choose_the_weights_of_a_segmentation(trained: Path) -> None:
    parser = ConfigParser()
    parser.read_config(TRAIN)
    parser.update({"dataset_dir": str(trained / "mr"), "label_map": LABEL_MAP})
    train, validation = (
        parser.get_parsed_content(f"{part}#cases") for part in ("train", "validate")
    )
    assert (len(train), len(validation)) == (4, 1)
    assert not {case["image"] for case in train} & {case["image"] for case in validation}
    weights = torch.load(trained / "out" / "model.pt", weights_only=True)
    parser.get_parsed_content("network_def").load_state_dict(weights)
    checkpoint = torch.load(trained / "out" / "checkpoint_epoch=20.pt", weights_only=True)
    assert checkpoint["network"].keys() == weights.keys()


@pytest.mark.slow
def test_predictions_lie_on_the_files_grid_and_are_scored_there(trained: Path) -> None:
    test = trained / "test"
    for number in range(2):
        write_case(test, "images/{}.nii.gz", "labels/{}.nii.gz", f"t{number}", 3, 10 + number)
    output = trained / "scores"
    monai.bundle.run(
        config_file=[TRAIN, str(CONFIGS / "evaluate.json")],
        dataset_dir=str(trained / "mr"),
        ckpt_path=str(trained / "out" / "model.pt"),
        test_dir=str(test),
        output_dir=str(output),
    )
    summary = json.loads((output / "scores.json").read_text())["summary"][0]
    dice = []
    for number in range(2):
        prediction, label = (
            nib.load(path)
            for path in (output / f"t{number}_pred.nii.gz", test / f"labels/t{number}.nii.gz")
        )
        np.testing.assert_array_equal(prediction.affine, label.affine)
        found, wanted = (np.asarray(image.dataobj) > 0 for image in (prediction, label))
        dice.append(2 * (found & wanted).sum() / (found.sum() + wanted.sum()))
    assert summary["dice"] == pytest.approx(np.mean(dice), abs=1e-6)
    assert summary["structures"] == 2
    assert summary["dice"] > 0.5  # a bright square on gray is learnt at once


def test_an_unknown_architecture_of_a_segmentation_is_refused() -> None:
    parser = ConfigParser()
    parser.read_config(TRAIN)
    parser.update({"architecture": "vnet", "label_map": LABEL_MAP})
    with pytest.raises(RuntimeError, match="architecture"):
        parser.get_parsed_content("network")


@pytest.mark.slow
def test_a_segmentation_without_held_out_patients_saves_the_last_weights(
    trained: Path, tmp_path: Path
) -> None:
    monai.bundle.run(
        config_file=TRAIN,
        dataset_dir=str(trained / "mr"),
        output_dir=str(tmp_path),
        max_epochs=2,
        val_fraction=0.0,
    )
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    parser = ConfigParser()
    parser.read_config(TRAIN)
    parser.update({"label_map": LABEL_MAP})
    parser.get_parsed_content("network_def").load_state_dict(weights)
