# SPDX-License-Identifier: Apache-2.0
"""Label maps and labelled cases: every layout, every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from contourdiff.data.cases import labelled_cases
from contourdiff.data.label_map import LabelMap
from contourdiff.transforms import RemapLabels, RemapLabelsd
from helpers import CONFIGS, write_nifti

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
MAP = {"classes": ["femur", "hip"], "ct": {"femur": [75, "77-79"], "hip": 3}, "mr": {"femur": 1, "hip": "2"}}


def write_map(folder: Path, **changes: object) -> Path:
    path = folder / "map.json"
    path.write_text(json.dumps(MAP | changes))
    return path


def volume(path: Path, value: int = 1, shape: tuple[int, int, int] = (3, 4, 5)) -> Path:
    return write_nifti(path, np.full(shape, value, dtype=np.uint8), AFFINE)


def test_label_map_numbers_classes_and_expands_ranges(tmp_path: Path) -> None:
    label_map = LabelMap(write_map(tmp_path))
    assert label_map.classes == {1: "femur", 2: "hip"}
    assert label_map.values("ct") == {1: [75, 77, 78, 79], 2: [3]}
    assert label_map.values("mr") == {1: [1], 2: [2]}
    with pytest.raises(ValueError, match="side must be"):
        label_map.values("pet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ct": {"femur": [1]}}, "classes .* but values for"),
        ({"ct": {"femur": [1], "hip": [1]}}, "listed twice"),
        ({"mr": {"femur": ["5-2"], "hip": 1}}, "no range"),
        ({"mr": {"femur": [0], "hip": 1}}, "above 0"),
        ({"mr": {"femur": ["one"], "hip": 1}}, "invalid literal"),
        ({"classes": []}, "classes"),
        ({"mr": None}, "label values of each class"),
    ],
)
def test_label_map_with_a_mistake_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelMap(write_map(tmp_path, **changes))


def test_missing_label_map(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pass --label_map"):
        LabelMap(tmp_path / "none.json")


def test_shipped_label_map_joins_totalsegmentator_and_spider() -> None:
    label_map = LabelMap(CONFIGS.parent / "label_maps" / "vertebrae.json")
    assert label_map.classes == {1: "vertebra"}
    assert 26 not in label_map.values("ct")[1]  # S1: SPIDER does not label the sacrum
    assert set(range(27, 51)) == set(label_map.values("ct")[1])
    assert set(range(1, 8)) <= set(label_map.values("mr")[1])


def test_values_that_no_class_lists_become_background(tmp_path: Path) -> None:
    path = str(write_map(tmp_path))
    label = MetaTensor(torch.tensor([[[0.0, 3, 75, 76, 77, 79.0000001, 200]]]), affine=np.eye(4))
    joined = RemapLabelsd("label", path, "ct")({"label": label})["label"]
    assert isinstance(joined, MetaTensor)
    assert joined.tolist() == [[[0, 2, 1, 0, 1, 1, 0]]]
    np.testing.assert_array_equal(RemapLabels(LabelMap(path), "mr")(np.array([[0, 1, 2, 3]])), [[0, 1, 2, 0]])


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("{}_mr.nii.gz", "{}_label.nii.gz"),
        ("{}.nii.gz", "labels/{}.nii.gz"),
        ("images/{}.nii", "labels/{}.nii.gz"),
    ],
)
def test_three_layouts(tmp_path: Path, image: str, label: str) -> None:
    for name in ("b", "a", "c"):
        volume(tmp_path / image.format(name))
        if name != "c":
            volume(tmp_path / label.format(name))
    assert [Path(item["image"]) for item in labelled_cases(tmp_path)] == [tmp_path / image.format(n) for n in "ab"]
    assert [Path(item["label"]) for item in labelled_cases(tmp_path)] == [tmp_path / label.format(n) for n in "ab"]
    assert len(labelled_cases(tmp_path, pattern="b*")) == 1


def test_a_bad_case_is_named_and_the_others_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("good", "grid", "broken", "empty"):
        volume(tmp_path / f"{name}.nii.gz", 7)
        volume(tmp_path / "labels" / f"{name}.nii.gz", 0 if name == "empty" else 1, (3, 4, 6 if name == "grid" else 5))
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    names = [Path(item["image"]).name for item in labelled_cases(tmp_path)]
    assert names == ["empty.nii.gz", "good.nii.gz"]
    for text in ("grid is left out: expected label", "broken is left out", "empty: its label is empty"):
        assert text in caplog.text


def test_split_is_by_patient_whole_and_stable(tmp_path: Path) -> None:
    names = [f"p{patient:02d}_scan{scan}" for patient in range(10) for scan in range(3)]
    for name in names:
        volume(tmp_path / f"{name}.nii.gz")
        volume(tmp_path / "labels" / f"{name}.nii.gz")
    split = {
        part: {Path(item["image"]).name[:3] for item in labelled_cases(tmp_path, part, "*", 0.3, "(p..)_")}
        for part in ("train", "val")
    }
    assert len(split["val"]) == 3
    assert split["train"] | split["val"] == {name[:3] for name in names}
    assert not split["train"] & split["val"]
    assert labelled_cases(tmp_path, "val", "*", 0.05, "(p..)_") == []


def test_several_folders_are_one_list_and_one_patient(tmp_path: Path) -> None:
    for seed in "01":
        for case in ("x", "y"):
            volume(tmp_path / seed / f"{case}_mr.nii.gz")
            volume(tmp_path / seed / f"{case}_label.nii.gz")
    folders = [tmp_path / "0", tmp_path / "1"]
    assert len(labelled_cases(folders)) == 4
    assert {Path(item["image"]).name for item in labelled_cases(folders, "train", val_fraction=0.5)} in (
        {"x_mr.nii.gz"},
        {"y_mr.nii.gz"},
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"split": "test"}, ValueError, "split must be"),
        ({"val_fraction": 1.0}, ValueError, "val_fraction must lie"),
        ({"pattern": "z*"}, ValueError, "no labelled case"),
        ({"patient_pattern": "a", "split": "train"}, ValueError, "put the patient in brackets"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path: Path, arguments: dict, error: type, message: str) -> None:
    volume(tmp_path / "a_mr.nii.gz")
    volume(tmp_path / "a_label.nii.gz")
    with pytest.raises(error, match=message):
        labelled_cases(tmp_path, **arguments)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pass --dataset_dir"):
        labelled_cases(tmp_path / "none")
