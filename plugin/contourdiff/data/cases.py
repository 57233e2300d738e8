# SPDX-License-Identifier: Apache-2.0
"""Lists of cases: what to train on and what to translate."""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from monai.utils import ensure_tuple
from torch import nn

from contourdiff.data.checks import check_case, check_label, check_output_dir, check_volume
from contourdiff.weights import load_weights

logger = logging.getLogger(__name__)

NIFTI_SUFFIXES = (".nii.gz", ".nii")


def case_of(path: str | Path) -> str:
    """Case id of a file: its name without ``.nii`` or ``.nii.gz``."""
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in NIFTI_SUFFIXES if name.lower().endswith(suffix)), name)


def nifti_by_case(folder: Path) -> dict[str, Path]:
    """NIfTI files directly in a folder, by case id; none where the folder does not exist."""
    return {case_of(path): path for path in sorted(folder.glob("*")) if _is_nifti(path)}


class TranslationCases:
    """CT volumes to translate, each checked before any work starts.

    ``<dataset_dir>/<case>.nii.gz`` may have a label ``<dataset_dir>/labels/<case>.nii.gz``; or a JSON file in the
    Decathlon form lists ``{"image": ..., "label": ...}`` under ``section``.

    Args:
        dataset_dir: folder of the volumes; paths in the datalist are relative to it.
        output_dir: where translations go: cases that lie there already are left alone.
        datalist: JSON file in the Decathlon form, relative to ``dataset_dir``; ``None`` takes the folder's files.
        section: list of the datalist that is taken.
        overwrite: translate again what lies there already.

    Attributes:
        items: ``[{"image": path}, ...]`` for a MONAI ``Dataset``: what is to be translated.
        labels: label file of each case that has one.
        warnings: what looked odd in a case.
        failures: why a case cannot be translated.
        kept: cases whose outputs were there already.

    Raises:
        FileNotFoundError: if the folder or the datalist does not exist.
        ValueError: if there is no case at all, or two have the same id.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        output_dir: str | Path,
        datalist: str | Path | None = None,
        section: str = "testing",
        overwrite: bool = False,
    ) -> None:
        root = Path(dataset_dir)
        if not root.is_dir():
            raise FileNotFoundError(f"expected a folder of CT volumes at {root}, found none; pass --dataset_dir")
        pairs = _listed_pairs(root, root / datalist, section) if datalist else _folder_pairs(root)
        ids = [case_of(image) for image, _ in pairs]
        if not pairs:
            raise ValueError(f"expected NIfTI files (.nii, .nii.gz) in {root}, found none; pass another --dataset_dir")
        if len(set(ids)) != len(ids):
            raise ValueError(f"expected one file a case, got twice: {sorted({i for i in ids if ids.count(i) > 1})}")
        self.items: list[dict[str, str]] = []
        self.labels: dict[str, Path] = {}
        self.warnings: dict[str, list[str]] = {}
        self.failures: dict[str, str] = {}
        self.kept: list[str] = []
        for case, (image, label) in zip(ids, pairs, strict=True):
            if not overwrite and (Path(output_dir) / f"{case}_mr.json").is_file():
                self.kept.append(case)
            else:
                self._check(case, image, label)

    def _check(self, case: str, image: Path, label: Path | None) -> None:
        try:
            self.warnings[case] = check_case(image, label)
        except ValueError as error:
            self.failures[case] = str(error)
            logger.error("%s: %s", case, error)
            return
        for warning in self.warnings[case]:
            logger.warning("%s: %s", case, warning)
        self.items.append({"image": str(image)})
        if label is not None:
            self.labels[case] = label


def checked_cases(
    dataset_dir: str | Path,
    output_dir: str | Path,
    ckpt_path: str | Path,
    network: nn.Module,
    datalist: str | Path | None = None,
    overwrite: bool = False,
) -> TranslationCases:
    """Check all that can be checked before work starts; end the program with one clear line if nothing can be done.

    Args:
        dataset_dir: see :class:`TranslationCases`.
        output_dir: made if it is absent.
        ckpt_path: weights, which are loaded into ``network``.
        network: the network that the weights are for.
        datalist: see :class:`TranslationCases`.
        overwrite: see :class:`TranslationCases`.

    Raises:
        SystemExit: with a message if there is no such folder, no case in it, the weights do not load, or the output
            folder cannot be written to.
    """
    try:
        if not Path(dataset_dir).is_dir():
            raise FileNotFoundError(f"expected a folder of CT volumes at {dataset_dir}, found none; pass --dataset_dir")
        load_weights(network, ckpt_path)
        cases = TranslationCases(dataset_dir, output_dir, datalist, overwrite=overwrite)
        check_output_dir(output_dir)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    return cases


def _folder_pairs(root: Path) -> list[tuple[Path, Path | None]]:
    images = sorted(path for path in root.iterdir() if _is_nifti(path))
    by_case = nifti_by_case(root / "labels")
    return [(image, by_case.get(case_of(image))) for image in images]


def _listed_pairs(root: Path, datalist: Path, section: str) -> list[tuple[Path, Path | None]]:
    content = _read_json(datalist)
    if section not in content:
        raise ValueError(f"expected the list {section!r} in {datalist}, got {sorted(content)}; name the list so")
    entries = [item if isinstance(item, dict) else {"image": item} for item in content[section]]
    return [(root / item["image"], root / item["label"] if item.get("label") else None) for item in entries]


def training_cases(
    dataset_dir: str | Path,
    split: str,
    datalist: str | Path | None = None,
    pattern: str = "*",
    val_percent: int = 10,
) -> list[dict[str, str]]:
    """MR images to train on, ``[{"image": path}, ...]``, in the order of their names.

    Args:
        dataset_dir: folder that paths in the datalist are relative to, searched for NIfTI files without a datalist.
        split: ``"train"`` or ``"val"``.
        datalist: a CSV file with columns ``file`` and ``split``, or a JSON file in the Decathlon form with the lists
            ``training`` and ``validation``; relative to ``dataset_dir``. ``None`` takes every NIfTI file of the folder
            and holds out ``val_percent`` of them, chosen by the hash of their names. The hash knows nothing of
            patients: with several images a patient, give a datalist.
        pattern: keep files whose path relative to ``dataset_dir`` matches (``t1/*``).
        val_percent: see ``datalist``.

    Raises:
        FileNotFoundError: if the folder or the datalist does not exist.
        ValueError: for an unknown split or if no image is left.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split must be 'train' or 'val', got {split!r}")
    root = Path(dataset_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder of MR images at {root}; pass --dataset_dir")
    if datalist:
        files = [file for file, its_split in _read_datalist(root / datalist) if its_split == split]
    else:
        found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if _is_nifti(path))
        files = [file for file in found if (_name_hash(file) % 100 < val_percent) == (split == "val")]
    files = sorted(file for file in files if fnmatch.fnmatch(file, pattern))
    if not files:
        raise ValueError(f"no image of split {split!r} matches {pattern!r} in {root}; check dataset_dir and datalist")
    return [{"image": str(root / file)} for file in files]


def _read_datalist(path: Path) -> list[tuple[str, str]]:
    if path.suffix == ".csv":
        if not path.is_file():
            raise FileNotFoundError(f"expected a datalist at {path}, found none; pass --datalist")
        with path.open(newline="") as file:
            return [(row["file"], row["split"]) for row in csv.DictReader(file)]
    content = _read_json(path)
    names = {"training": "train", "validation": "val"}
    return [
        (item["image"] if isinstance(item, dict) else item, names[section])
        for section in names
        for item in content.get(section, [])
    ]


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"expected a datalist at {path}, found none; pass --datalist")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"expected JSON in the datalist {path}, got: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object with lists of cases in {path}, got {type(content).__name__}")
    return content


def _is_nifti(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(NIFTI_SUFFIXES) and not path.name.startswith(".")


def _name_hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


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
