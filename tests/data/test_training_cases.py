# SPDX-License-Identifier: Apache-2.0
"""Lists of images to train on: every layout, every mistake, and a split that never fails for two images or more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from contourdiff.data.nifti_names import case_of
from contourdiff.data.training_cases import labelled_cases, training_cases
from helpers.volumes import make_mr, write_nifti

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def volume(path: Path, value: int = 1, shape: tuple[int, int, int] = (3, 4, 5)) -> Path:
    return write_nifti(path, np.full(shape, value, dtype=np.uint8), AFFINE)


def test_a_training_list_is_a_csv_or_a_json_file(tmp_path: Path) -> None:
    dataset_dir = make_mr(tmp_path / "mr")
    assert [case_of(item["image"]) for item in training_cases(dataset_dir, "val", "index.csv")] == [
        "mr2",
        "mr5",
    ]
    (tmp_path / "list.json").write_text(
        '{"training": ["mr0.nii.gz"], "validation": [{"image": "mr1.nii.gz"}]}'
    )
    assert [
        case_of(i["image"]) for i in training_cases(dataset_dir, "val", tmp_path / "list.json")
    ] == ["mr1"]
    with pytest.raises(ValueError, match=r"no image of split 'train' matches 't2/\*'"):
        training_cases(dataset_dir, "train", "index.csv", "t2/*")
    with pytest.raises(
        FileNotFoundError, match=r"expected a folder of MR images at .*nowhere; pass --dataset_dir"
    ):
        training_cases(tmp_path / "nowhere", "train")


@pytest.mark.parametrize("count", [2, 5, 10, 20, 31])
@pytest.mark.parametrize("prefix", ["a", "b", "c"])
def test_a_tenth_of_the_images_is_held_out_and_at_least_one(
    count: int, prefix: str, tmp_path: Path
) -> None:
    names = [f"{prefix}{number}.nii.gz" for number in range(count)]
    for name in names:
        (tmp_path / name).touch()
    split = {
        part: {Path(item["image"]).name for item in training_cases(tmp_path, part)}
        for part in ("train", "val")
    }
    assert len(split["val"]) == max(count // 10, 1)
    assert not split["train"] & split["val"]
    assert split["train"] | split["val"] == set(names)


def test_both_splits_rank_names_in_one_way(tmp_path: Path) -> None:
    for number in range(10):
        volume(tmp_path / f"{number}.nii.gz")
        volume(tmp_path / "labels" / f"{number}.nii.gz")
    unlabelled = training_cases(tmp_path, "val", pattern="?.nii.gz", val_fraction=0.3)
    labelled = labelled_cases(tmp_path, "val", val_fraction=0.3, patient_pattern="(.*)")
    assert len(unlabelled) == len(labelled) == 3


@pytest.mark.parametrize(
    ("split", "changes", "message"),
    [
        (
            "val",
            {},
            "no image of split 'val' matches .*: training requires two or more images, .* and 1 match",
        ),
        ("train", {"pattern": "t1/*"}, r"matches 't1/\*' .* and 0 match"),
        ("val", {"datalist": "list.csv"}, "list.csv lists none"),
        ("test", {}, r"split must be one of \('train', 'val'\), got 'test'"),
        ("val", {"val_fraction": 1.0}, r"val_fraction must lie in \[0, 1\), got 1.0"),
    ],
)
def test_an_empty_split_names_its_cause(
    split: str, changes: dict, message: str, tmp_path: Path
) -> None:
    (tmp_path / "only.nii.gz").touch()
    (tmp_path / "list.csv").write_text("file,split\nonly.nii.gz,train\n")
    with pytest.raises(ValueError, match=message):
        training_cases(tmp_path, split, **changes)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("{}_mr.nii.gz", "{}_label.nii.gz"),
        ("{}.nii.gz", "labels/{}.nii.gz"),
        ("images/{}.nii", "labels/{}.nii.gz"),
    ],
)
def test_labelled_cases_are_found_in_three_layouts(tmp_path: Path, image: str, label: str) -> None:
    for name in ("b", "a", "c"):
        volume(tmp_path / image.format(name))
        if name != "c":
            volume(tmp_path / label.format(name))
    assert [Path(item["image"]) for item in labelled_cases(tmp_path)] == [
        tmp_path / image.format(n) for n in "ab"
    ]
    assert [Path(item["label"]) for item in labelled_cases(tmp_path)] == [
        tmp_path / label.format(n) for n in "ab"
    ]
    assert len(labelled_cases(tmp_path, pattern="b*")) == 1


def test_a_bad_labelled_case_is_named_and_the_others_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("good", "grid", "broken", "empty"):
        volume(tmp_path / f"{name}.nii.gz", 7)
        volume(
            tmp_path / "labels" / f"{name}.nii.gz",
            0 if name == "empty" else 1,
            (3, 4, 6 if name == "grid" else 5),
        )
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    names = [Path(item["image"]).name for item in labelled_cases(tmp_path)]
    assert names == ["empty.nii.gz", "good.nii.gz"]
    for text in (
        "grid is left out: expected label",
        "broken is left out",
        "empty: its label is empty",
    ):
        assert text in caplog.text


def test_the_split_is_by_patient_whole_and_stable(tmp_path: Path) -> None:
    names = [f"p{patient:02d}_scan{scan}" for patient in range(10) for scan in range(3)]
    for name in names:
        volume(tmp_path / f"{name}.nii.gz")
        volume(tmp_path / "labels" / f"{name}.nii.gz")
    split = {
        part: {
            Path(item["image"]).name[:3]
            for item in labelled_cases(tmp_path, part, "*", 0.3, "(p..)_")
        }
        for part in ("train", "val")
    }
    assert len(split["val"]) == 3
    assert split["train"] | split["val"] == {name[:3] for name in names}
    assert not split["train"] & split["val"]
    assert labelled_cases(tmp_path, "val", "*", 0.05, "(p..)_") == []


def test_patients_are_chosen_before_any_is_held_out(tmp_path: Path) -> None:
    for name in ("p01_a", "p01_b", "p02_a", "p03_a"):
        volume(tmp_path / f"{name}.nii.gz")
        volume(tmp_path / "labels" / f"{name}.nii.gz")
    parts = [
        [
            Path(item["image"]).name[:3]
            for item in labelled_cases(tmp_path, part, "*", 0.5, "(p..)_", ["p01", "p03"])
        ]
        for part in ("train", "val")
    ]
    assert sorted(parts) == [["p01", "p01"], ["p03"]]
    with pytest.raises(ValueError, match="no labelled case"):
        labelled_cases(tmp_path, patients=["p09"])


def test_several_folders_are_one_list_and_one_patient(tmp_path: Path) -> None:
    for seed in "01":
        for case in ("x", "y"):
            volume(tmp_path / seed / f"{case}_mr.nii.gz")
            volume(tmp_path / seed / f"{case}_label.nii.gz")
    folders = [tmp_path / "0", tmp_path / "1"]
    assert len(labelled_cases(folders)) == 4
    assert {
        Path(item["image"]).name for item in labelled_cases(folders, "train", val_fraction=0.5)
    } in (
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
def test_labelled_cases_refuse_arguments_out_of_range(
    tmp_path: Path, arguments: dict, error: type, message: str
) -> None:
    volume(tmp_path / "a_mr.nii.gz")
    volume(tmp_path / "a_label.nii.gz")
    with pytest.raises(error, match=message):
        labelled_cases(tmp_path, **arguments)


def test_labelled_cases_refuse_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pass --dataset_dir"):
        labelled_cases(tmp_path / "none")


def test_a_ct_in_several_contrasts_is_one_patient_in_every_split(tmp_path: Path) -> None:
    """Else one contrast of a CT would choose the weights that the other was trained for."""
    for case in "abcd":
        for contrast in ("t1", "t2"):
            name = f"{case}_{contrast}"
            volume(tmp_path / f"{name}_mr.nii.gz")
            volume(tmp_path / f"{name}_label.nii.gz")
            record = tmp_path / f"{name}_mr.json"
            record.write_text(json.dumps({"image": f"/data/{case}.nii.gz"}))
    members = {}
    for part in ("train", "val"):
        items = labelled_cases(tmp_path, part, val_fraction=0.5)
        members[part] = [Path(item["image"]).name.removesuffix("_mr.nii.gz") for item in items]
        assert len(members[part]) == 4
    held_out = {name[0] for name in members["val"]}
    assert len(held_out) == 2
    assert held_out.isdisjoint(name[0] for name in members["train"])


def test_a_bad_case_of_a_test_ends_it(tmp_path: Path) -> None:
    for name in ("good", "broken"):
        volume(tmp_path / f"{name}.nii.gz", 7)
        volume(tmp_path / "labels" / f"{name}.nii.gz", 1)
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    assert len(labelled_cases(tmp_path)) == 1
    with pytest.raises(ValueError, match=r"to be readable, got \['broken'\], see the errors above"):
        labelled_cases(tmp_path, strict=True)
    assert len(labelled_cases(tmp_path, pattern="good", strict=True)) == 1
