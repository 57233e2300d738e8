# SPDX-License-Identifier: Apache-2.0
"""Classes of a transfer."""

from __future__ import annotations

from pathlib import Path

import pytest

from contourdiff.data.atomic import write_json
from contourdiff.data.label_map import LabelMap
from contourdiff.segmentation.labels import bone_classes, pair_classes, write_classes


def test_named_classes_have_their_values_in_ct_and_mr(tmp_path: Path) -> None:
    path = write_classes(tmp_path / "classes.json", {"vertebra": "27-29,33", "sacrum": "26"})
    label_map = LabelMap(path)
    assert label_map.classes == {1: "vertebra", 2: "sacrum"}
    for side in ("ct", "mr"):
        assert label_map.values(side) == {1: [27, 28, 29, 33], 2: [26]}


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label values of each class"):
        write_classes(tmp_path / "classes.json", {"vertebra": "L5"})


def test_without_a_map_every_value_of_the_pairs_is_a_class(tmp_path: Path) -> None:
    write_json(tmp_path / "pairs.json", {"classes": {"31": "vertebrae_L1", "4": "4"}})
    assert pair_classes(tmp_path) == {
        "classes": ["4", "vertebrae_L1"],
        "ct": {"4": [4], "vertebrae_L1": [31]},
        "mr": {"4": [4], "vertebrae_L1": [31]},
    }


def test_the_map_of_the_pairs_is_taken_where_there_is_one(tmp_path: Path) -> None:
    content = {"classes": ["bone"], "ct": {"bone": [1]}, "mr": {"bone": [7]}}
    write_json(tmp_path / "label_map.json", content)
    assert pair_classes(tmp_path) == content


def test_bone_is_the_classes_that_the_pairs_were_made_with_as_bone(tmp_path: Path) -> None:
    content = {"settings": {"bone_values": [2]}, "classes": {"1": "disc", "2": "vertebra"}}
    write_json(tmp_path / "pairs.json", content)
    classes = {"disc": [1], "vertebra": [2]}
    mapped = {"classes": ["disc", "vertebra"], "ct": classes, "mr": {"disc": [7], "vertebra": [9]}}
    write_json(tmp_path / "label_map.json", mapped)
    assert bone_classes(tmp_path) == [2]


def test_bone_of_pairs_without_a_map_is_found_by_its_value(tmp_path: Path) -> None:
    content = {"settings": {"bone_values": [31]}, "classes": {"31": "vertebrae_L1", "4": "4"}}
    write_json(tmp_path / "pairs.json", content)
    assert bone_classes(tmp_path) == [2]
    write_json(tmp_path / "pairs.json", {**content, "settings": {"bone_values": []}})
    assert bone_classes(tmp_path) == []
