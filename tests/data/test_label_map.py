# SPDX-License-Identifier: Apache-2.0
"""Label maps: numbers of classes, ranges of values, and every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from contourdiff.data.label_map import LabelMap
from contourdiff.transforms import RemapLabels, RemapLabelsd
from helpers.paths import CONFIGS

MAP = {
    "classes": ["femur", "hip"],
    "ct": {"femur": [75, "77-79"], "hip": 3},
    "mr": {"femur": 1, "hip": "2"},
}


def write_map(folder: Path, **changes: object) -> Path:
    path = folder / "map.json"
    path.write_text(json.dumps(MAP | changes))
    return path


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


def test_a_missing_label_map_is_refused(tmp_path: Path) -> None:
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
    joined = RemapLabelsd("label", label_map=path, side="ct")({"label": label})["label"]
    assert isinstance(joined, MetaTensor)
    assert joined.tolist() == [[[0, 2, 1, 0, 1, 1, 0]]]
    np.testing.assert_array_equal(
        RemapLabels(LabelMap(path), "mr")(np.array([[0, 1, 2, 3]])), [[0, 1, 2, 0]]
    )
