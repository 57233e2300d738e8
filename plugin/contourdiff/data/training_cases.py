# SPDX-License-Identifier: Apache-2.0
"""Lists of images to train on: MR for the translator, and labelled images for segmentation."""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import ensure_tuple

from contourdiff.data.atomic import read_json
from contourdiff.data.checks import check_label, check_volume
from contourdiff.data.datalists import read_split
from contourdiff.data.nifti_names import case_name, case_of, is_nifti, nifti_by_case

logger = logging.getLogger(__name__)


def training_cases(
    dataset_dir: str | Path,
    split: str,
    datalist: str | Path | None = None,
    pattern: str = "*",
    val_fraction: float = 0.1,
    contrasts: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """MR images to train on, ``[{"image": path}, ...]``, sorted by name.

    Images are ranked by the hash of their names, and the first ones are held out (not those of version 0.1.0).

    Args:
        dataset_dir: folder of the images; paths in the datalist are relative to it.
        split: ``"train"`` or ``"val"``.
        datalist: a CSV file with columns ``file`` and ``split``, or a JSON file in the Decathlon form with the lists
            ``training`` and ``validation``; relative to ``dataset_dir``. ``None`` takes every NIfTI file in the folder
            and its subfolders. These are held out image by image: with several images a patient, give a datalist.
        pattern: keep files whose path relative to ``dataset_dir`` matches (``t1/*``).
        val_fraction: share of the matching images that is held out, rounded down, but at least one of two or more.
        contrasts: for a network of several contrasts, name -> pattern of the files of it, relative to ``dataset_dir``.
            Each item then has its ``contrast``, the position of the first name whose pattern matches.

    Raises:
        FileNotFoundError: if the folder or the datalist does not exist.
        ValueError: for an unknown split, a ``val_fraction`` outside [0, 1), if no image is left, or one has none of
            the ``contrasts``.
    """
    _check_split(split, ("train", "val"), val_fraction)
    root = Path(dataset_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder of MR images at {root}; pass --dataset_dir")
    if datalist:
        files = fnmatch.filter(read_split(root / datalist, split), pattern)
        reason = f"{datalist} lists none"
    else:
        paths = [path.relative_to(root).as_posix() for path in root.rglob("*") if is_nifti(path)]
        matching = fnmatch.filter(paths, pattern)
        held_out = _held_out(set(matching), val_fraction, at_least=1)
        files = [file for file in matching if (file in held_out) == (split == "val")]
        reason = (
            f"training requires two or more images, one of them held out, and {len(matching)} match"
        )
    if not files:
        raise ValueError(f"no image of split {split!r} matches {pattern!r} in {root}: {reason}")
    items = []
    for file in sorted(files):
        item: dict[str, Any] = {"image": str(root / file)}
        if contrasts:
            item["contrast"] = _contrast_of(file, contrasts)
        items.append(item)
    return items


def _contrast_of(file: str, contrasts: Mapping[str, str]) -> int:
    for position, pattern in enumerate(contrasts.values()):
        if fnmatch.fnmatch(file, pattern):
            return position
    raise ValueError(
        f"expected every image to match one of the contrasts {dict(contrasts)}, got {file}"
    )


def labelled_cases(
    dataset_dir: str | Path | Sequence[str | Path],
    split: str = "all",
    pattern: str = "*",
    val_fraction: float = 0.2,
    patient_pattern: str = "(.*)",
    patients: Sequence[str] | None = None,
    strict: bool = False,
) -> list[dict[str, str]]:
    """Images with their labels, ``[{"image": path, "label": path}, ...]``, sorted by name, each checked.

    Three layouts are supported:

        <case>_mr.nii.gz      <case>_label.nii.gz        output of a translation
        <case>.nii.gz         labels/<case>.nii.gz       input of a translation
        images/<case>.nii.gz  labels/<case>.nii.gz

    Cases without a label are left out. So are cases that cannot be read or whose label is on another grid, and an error
    is logged for each, unless ``strict``. Translations of one image, in several contrasts, are one patient: that of the
    first of them by name. The image is that of the record ``<case>_mr.json``.

    Args:
        dataset_dir: one folder or several, such as translations of the same CT with different seeds.
        split: ``"all"``, ``"train"`` or ``"val"``.
        pattern: keep cases whose id matches (``*_t1_*``).
        val_fraction: share of the patients that is held out, rounded down; see [`training_cases`][].
        patient_pattern: regular expression, matched at the start of the case id; its first group is the patient.
        patients: keep the cases of these, before any is held out; ``None`` keeps all.
        strict: raise for cases that cannot be read or whose label is on another grid, as for a test, whose scores
            would be of other cases than were asked for.

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: for a bad case, if ``strict``; if no case is left, or an argument is out of range.
    """
    _check_split(split, ("all", "train", "val"), val_fraction)
    candidates = []
    patient_of_source: dict[str, str] = {}
    for folder in ensure_tuple(dataset_dir):
        for image, label in _labelled_pairs(Path(folder)):
            name = case_name(image)
            if not fnmatch.fnmatch(name, pattern):
                continue
            own_patient = patient_of(name, patient_pattern)
            patient = patient_of_source.setdefault(source_case(image), own_patient)
            if patients is None or patient in patients:
                candidates.append((patient, name, image, label))
    held_out = _held_out({candidate[0] for candidate in candidates}, val_fraction)
    items = []
    bad = []
    for patient, name, image, label in candidates:
        in_split = split == "all" or (patient in held_out) == (split == "val")
        if not in_split:
            continue
        if not _is_valid(name, image, label):
            bad.append(name)
        else:
            items.append({"image": str(image), "label": str(label)})
    if bad and strict:
        raise ValueError(
            f"expected every labelled case of {dataset_dir} to be readable, got {bad}, see the errors above; repair "
            "them or move them away"
        )
    if not items and split != "val":
        raise ValueError(
            f"no labelled case of split {split!r} matches {pattern!r} in {dataset_dir}; expected <case>_mr.nii.gz "
            "beside <case>_label.nii.gz, or <case>.nii.gz and labels/<case>.nii.gz"
        )
    return items


def source_case(image: str | Path) -> str:
    """Case id of the image that a translation was made from, of the record beside it; without one, its own."""
    path = Path(str(image).removesuffix(".nii.gz") + ".json")
    if path.stem.endswith("_mr") and path.is_file():
        record = read_json(path)
        if "image" in record:
            return case_of(record["image"])
    return case_name(image)


def _labelled_pairs(root: Path) -> list[tuple[Path, Path]]:
    if not root.is_dir():
        raise FileNotFoundError(
            f"expected a folder of images and labels at {root}, found none; pass --dataset_dir"
        )
    if (root / "labels").is_dir():
        images = nifti_by_case(root / "images" if (root / "images").is_dir() else root)
        labels = nifti_by_case(root / "labels")
    else:
        images = _files_ending_in("_mr", root)
        labels = _files_ending_in("_label", root)
    cases = sorted(images.keys() & labels.keys())
    return [(images[case], labels[case]) for case in cases]


def _files_ending_in(ending: str, root: Path) -> dict[str, Path]:
    files = {}
    for case, path in nifti_by_case(root).items():
        if case.endswith(ending):
            files[case.removesuffix(ending)] = path
    return files


def patient_of(name: str, patient_pattern: str) -> str:
    """Patient of a case id: the first group of ``patient_pattern``, matched at its start; ``ValueError`` without."""
    match = re.match(patient_pattern, name)
    if match is None or not match.groups():
        raise ValueError(
            f"patient_pattern {patient_pattern!r} finds no group in {name!r}; put the patient in brackets"
        )
    return str(match.group(1))


def _check_split(split: str, splits: Sequence[str], val_fraction: float) -> None:
    if split not in splits:
        raise ValueError(f"split must be one of {splits}, got {split!r}")
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must lie in [0, 1), got {val_fraction}")


def _held_out(names: set[str], val_fraction: float, at_least: int = 0) -> set[str]:
    """The first names in the order of their hashes: ``val_fraction`` of them, and never all."""
    if not names:
        return set()
    ranked = sorted(names, key=_hash_of)
    share = int(len(ranked) * val_fraction)
    count = max(share, at_least)
    most = len(ranked) - 1
    return set(ranked[: min(count, most)])


def _hash_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _is_valid(name: str, image: Path, label: Path) -> bool:
    try:
        check_volume(image)
        if not np.any(check_label(image, label)):
            logger.warning("%s: its label is empty", name)
    except ValueError as error:
        logger.error("%s is left out: %s", name, error)
        return False
    return True
