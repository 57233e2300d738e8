# SPDX-License-Identifier: Apache-2.0
"""Labelled cases for a segmentation network, and the map that joins the classes of CT and MR."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from monai.utils import ensure_tuple

from contourdiff.checks import check_label, check_volume
from contourdiff.datalists import case_of, nifti_by_case

logger = logging.getLogger(__name__)

SIDES = ("ct", "mr")


class LabelMap:
    """Classes of a segmentation and the label values that belong to each, on the CT's side and on the MR's.

    The file is JSON; a value may be a number or a range of numbers, both ends included::

        {
            "classes": ["vertebra"],
            "ct": {"vertebra": ["27-50"]},
            "mr": {"vertebra": [1, 2, 3, 4, 5, 6, 7]}
        }

    Values that no class lists are background. The classes are numbered from 1 in their order.

    Args:
        path: the JSON file.

    Attributes:
        classes: number -> name, without the background.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not of this form, or one value belongs to two classes.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"expected a label map at {path}, found none; pass --label_map")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names = [str(name) for name in content["classes"]]
            self._values = {side: _values_of(content[side], names) for side in SIDES}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"expected classes and, for ct and mr, the label values of each class in {path}, got: {error!r}"
            ) from error
        if not names or len(set(names)) != len(names):
            raise ValueError(f"expected one class or more, each named once, in {path}, got {names}")
        self.classes = dict(enumerate(names, start=1))

    def values(self, side: str) -> dict[int, list[int]]:
        """Label values of each class on one side: ``{1: [27, 28, ...]}``."""
        if side not in SIDES:
            raise ValueError(f"side must be one of {SIDES}, got {side!r}")
        return {number: self._values[side][name] for number, name in self.classes.items()}


def labelled_cases(
    dataset_dir: str | Path | Sequence[str | Path],
    split: str = "all",
    pattern: str = "*",
    val_fraction: float = 0.2,
    patient_pattern: str = "(.*)",
) -> list[dict[str, str]]:
    """Images with their labels, ``[{"image": path, "label": path}, ...]``, sorted by name, each checked.

    Three layouts are understood::

        <case>_mr.nii.gz  <case>_label.nii.gz            what a translation writes
        <case>.nii.gz     labels/<case>.nii.gz           what a translation reads
        images/<case>.nii.gz  labels/<case>.nii.gz

    Cases without a label are left out. A case that cannot be read, or whose label lies on another grid, is named in
    the log and left out too.

    Args:
        dataset_dir: one folder or several, such as translations of the same CT with other seeds.
        split: ``"all"``, ``"train"`` or ``"val"``.
        pattern: keep cases whose id matches (``*_t1_*``).
        val_fraction: share of the patients that is held out, rounded down; chosen by the hash of their names.
        patient_pattern: regular expression; its first group, found at the start of the case id, is the patient.

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: if no case is left to train or test on, or an argument does not make sense.
    """
    if split not in ("all", "train", "val"):
        raise ValueError(f"split must be 'all', 'train' or 'val', got {split!r}")
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must lie in [0, 1), got {val_fraction}")
    pairs = [pair for folder in ensure_tuple(dataset_dir) for pair in _pairs(Path(folder))]
    named = [(case_name(image), image, label) for image, label in pairs]
    named = [item for item in named if fnmatch.fnmatch(item[0], pattern)]
    patients = {name: _patient_of(name, patient_pattern) for name, _, _ in named}
    held_out = _held_out(set(patients.values()), val_fraction)
    wanted = [item for item in named if split == "all" or (patients[item[0]] in held_out) == (split == "val")]
    sound = [(image, label) for name, image, label in wanted if _is_sound(name, image, label)]
    items = [{"image": str(image), "label": str(label)} for image, label in sound]
    if not items and split != "val":
        raise ValueError(
            f"no labelled case of split {split!r} matches {pattern!r} in {dataset_dir}; expected <case>_mr.nii.gz "
            "beside <case>_label.nii.gz, or <case>.nii.gz and labels/<case>.nii.gz"
        )
    return items


def case_name(image: str | Path) -> str:
    """Case id of an image, without the ``_mr`` of a translation."""
    return case_of(image).removesuffix("_mr")


def _values_of(side: dict, names: Sequence[str]) -> dict[str, list[int]]:
    if set(side) != set(names):
        raise ValueError(f"classes {sorted(names)} but values for {sorted(side)}")
    values = {name: [value for entry in ensure_tuple(side[name]) for value in _range(entry)] for name in names}
    every = [value for listed in values.values() for value in listed]
    if len(set(every)) != len(every):
        raise ValueError(f"values listed twice: {sorted({value for value in every if every.count(value) > 1})}")
    return values


def _range(entry: int | str) -> range:
    first, _, last = str(entry).partition("-")
    numbers = range(int(first), int(last or first) + 1)
    if len(numbers) == 0 or numbers[0] < 1:
        raise ValueError(f"{entry!r} is no range of label values above 0")
    return numbers


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder of images and labels at {root}, found none; pass --dataset_dir")
    if (root / "labels").is_dir():
        images = nifti_by_case(root / "images" if (root / "images").is_dir() else root)
        labels = nifti_by_case(root / "labels")
    else:
        files = nifti_by_case(root)
        labels = {case.removesuffix("_label"): path for case, path in files.items() if case.endswith("_label")}
        images = {case.removesuffix("_mr"): path for case, path in files.items() if case.endswith("_mr")}
    return [(images[case], labels[case]) for case in sorted(images.keys() & labels.keys())]


def _patient_of(name: str, patient_pattern: str) -> str:
    found = re.match(patient_pattern, name)
    if found is None or not found.groups():
        raise ValueError(f"patient_pattern {patient_pattern!r} finds no group in {name!r}; put the patient in brackets")
    return str(found.group(1))


def _held_out(patients: set[str], val_fraction: float) -> set[str]:
    ranked = sorted(patients, key=lambda patient: hashlib.sha256(patient.encode()).hexdigest())
    return set(ranked[: int(len(ranked) * val_fraction)])


def _is_sound(name: str, image: Path, label: Path) -> bool:
    try:
        check_volume(image)
        voxels = check_label(image, label)
    except ValueError as error:
        logger.error("%s is left out: %s", name, error)
        return False
    if not np.any(voxels):
        logger.warning("%s: its label is empty", name)
    return True
