# SPDX-License-Identifier: Apache-2.0
"""Lists of cases: to translate, to train the translator on, and labelled ones for segmentation."""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import ensure_tuple

from contourdiff.data.checks import check_case, check_label, check_name, check_volume
from contourdiff.data.datalists import read_split
from contourdiff.data.inputs import Pair, Source, find_inputs, is_url, local_nifti
from contourdiff.data.nifti_names import (
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    case_name,
    case_of,
    is_nifti,
    nifti_by_case,
)

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class TranslationCases:
    """CT volumes to translate. [`check`][] validates all of them before any work starts, once for several contrasts.

    A case is a file (NIfTI, NRRD or MetaImage) or a folder with a DICOM series. ``<dataset_dir>/<case>.nii.gz`` may
    have a label ``<dataset_dir>/labels/<case>.nii.gz``; or a datalist lists ``{"image": ..., "label": ...}``, or the
    folder is a BIDS dataset ([`contourdiff.data.bids.bids_inputs`][]). What is not NIfTI is first converted to
    ``<output_dir>/ct/<case>.nii.gz``, a label to ``<output_dir>/ct/labels``; what a URL names is copied there.

    Args:
        dataset_dir: folder of the volumes or of one folder a DICOM series, a DICOM folder, or the URL of a folder for
            fsspec (``s3://bucket/ct``); paths in the datalist are relative to it.
        output_dir: folder of the translations; cases with a record there are kept, not translated again.
        datalist: CSV file, or JSON file in the Decathlon form, relative to ``dataset_dir``, or the list of entries;
            ``None`` takes the folder's files.
        section: list of the datalist to use.
        overwrite: translate kept cases again.
        case_suffix: of the file names, ``<case><case_suffix>_mr.json``, where a case is translated several times.
        series_uid: SeriesInstanceUID to read where a DICOM folder holds several CT series.

    Attributes, by case except for the first and the last: ``items``, ``[{"image": path}, ...]`` to translate, for a
    MONAI ``Dataset``; ``labels``, files; ``sources``, names of the files or folders as they were given; ``warnings``,
    about suspicious input; ``failures``, why a case cannot be translated; ``kept``, cases that already have a record.
    """

    dataset_dir: str | Path
    output_dir: str | Path
    datalist: str | Path | Sequence[Any] | None = None
    section: str = "testing"
    overwrite: bool = False
    case_suffix: str = ""
    series_uid: str | None = None
    items: list[dict[str, str]] = field(default_factory=list, init=False)
    labels: dict[str, Path] = field(default_factory=dict, init=False)
    sources: dict[str, str] = field(default_factory=dict, init=False)
    warnings: dict[str, list[str]] = field(default_factory=dict, init=False)
    failures: dict[str, str] = field(default_factory=dict, init=False)
    kept: list[str] = field(default_factory=list, init=False)
    _checked: dict[str, dict[str, str] | str | None] = field(
        default_factory=dict, init=False
    )  # an item, or a failure

    def __post_init__(self) -> None:
        self.output_dir = Path(self.output_dir)

    def check(self, suffixes: Sequence[str] = (), pairs: Mapping[str, Pair] | None = None) -> None:
        """Read every case and set the attributes; a case that fails its checks is logged and left out.

        Several ``suffixes`` stand for ``case_suffix``; the attributes are those of the first, see [`select`][].
        ``pairs`` are those of [`pairs`][], if they are known already. Raises what [`pairs`][] does.
        """
        pairs = pairs or self.pairs()
        for attribute in (self.labels, self.sources, self.warnings):
            attribute.clear()
        suffixes = suffixes or (self.case_suffix,)
        self._checked = dict.fromkeys(pairs)
        for case, (image, label) in pairs.items():
            if not all(self.has_record(case, suffix) for suffix in suffixes):
                self._checked[case] = self._check_case(case, image, label)
        self.select(suffixes[0])

    def select(self, suffix: str) -> None:
        """Set ``items``, ``failures`` and ``kept`` to those of the translations ``<case><suffix>_mr.json``."""
        self.kept = [case for case in self._checked if self.has_record(case, suffix)]
        ahead = {case: item for case, item in self._checked.items() if case not in self.kept}
        self.items[:] = [
            item for item in ahead.values() if isinstance(item, dict)
        ]  # a dataset holds this list
        self.failures = {
            _printable(case): reason for case, reason in ahead.items() if isinstance(reason, str)
        }

    def has_record(self, case: str, suffix: str) -> bool:
        """Whether a translation is to be kept."""
        return not self.overwrite and (Path(self.output_dir) / f"{case}{suffix}_mr.json").is_file()

    def pairs(self) -> dict[str, Pair]:
        """Image and label of every case by its id, none of which is read.

        Raises ``FileNotFoundError`` if the folder or the datalist does not exist, ``ValueError`` if there is no case,
        two cases have the same id, or the folder is that of the output.
        """
        found = find_inputs(self.dataset_dir, self.datalist, self.section)
        if not found:
            known = (
                f"({', '.join(NIFTI_SUFFIXES + ITK_SUFFIXES)}) or CT in DICOM in {self.dataset_dir}"
            )
            raise ValueError(f"expected volumes {known}, found none; pass another --dataset_dir")
        if len(ids := [case_of(image) for image, _ in found]) != len(set(ids)):
            raise ValueError(
                f"expected one file a case, got twice: {sorted({i for i in ids if ids.count(i) > 1})}"
            )
        if not self.datalist and not is_url(self.dataset_dir):
            root = Path(self.dataset_dir)
            if root.resolve() == Path(self.output_dir).resolve():
                raise ValueError(
                    f"expected an output folder other than the input, got {root} twice; pass another"
                )
        return dict(zip(ids, found, strict=True))

    def entries(self) -> list[dict[str, Source]]:
        """All inputs as a datalist of absolute paths and URLs, before any check; errors as [`pairs`][]."""
        named = (zip(("image", "label"), pair, strict=True) for pair in self.pairs().values())
        return [
            {key: path if is_url(path) else Path(path).absolute() for key, path in pair if path}
            for pair in named
        ]

    def _check_case(self, case: str, image: Source, label: Source | None) -> dict[str, str] | str:
        """Item of a case, or why it cannot be translated."""
        self.sources[case] = Path(image).name
        copy = Path(self.output_dir) / "ct" / f"{case}.nii.gz"
        try:
            check_name(Path(image))
            image = local_nifti(image, copy, self.series_uid)
            if label is not None:
                label = local_nifti(label, copy.parent / "labels" / copy.name)
            self.warnings[case] = check_case(image, label)
        except (ValueError, OSError) as error:
            logger.error("%s: %s", _printable(case), error)
            return str(error)
        for warning in self.warnings[case]:
            logger.warning("%s: %s", case, warning)
        if label is not None:
            self.labels[case] = Path(label)
        return {"image": str(image)}


def _printable(case: str) -> str:
    return case if case.isprintable() else ascii(case)


def training_cases(
    dataset_dir: str | Path,
    split: str,
    datalist: str | Path | None = None,
    pattern: str = "*",
    val_fraction: float = 0.1,
    contrasts: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """MR images to train on, ``[{"image": path}, ...]``, sorted by name.

    Images are ranked by the hash of their names, and the first ones are held out (not those of version 0.1.0). Raises
    ``FileNotFoundError`` if the folder or the datalist does not exist, ``ValueError`` for an unknown split, a
    ``val_fraction`` outside [0, 1), if no image is left, or one has none of the ``contrasts``.

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
    """
    _check_split(split, ("train", "val"), val_fraction)
    root = Path(dataset_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder of MR images at {root}; pass --dataset_dir")
    if datalist:
        files = [
            file for file in read_split(root / datalist, split) if fnmatch.fnmatch(file, pattern)
        ]
        reason = f"{datalist} lists none"
    else:
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if is_nifti(path)]
        names = [name for name in names if fnmatch.fnmatch(name, pattern)]
        held_out = _held_out(set(names), val_fraction, at_least=1)
        files = [name for name in names if (name in held_out) == (split == "val")]
        reason = (
            f"training requires two or more images, one of them held out, and {len(names)} match"
        )
    if not files:
        raise ValueError(f"no image of split {split!r} matches {pattern!r} in {root}: {reason}")
    return [{"image": str(root / file), **_contrast_of(file, contrasts)} for file in sorted(files)]


def _contrast_of(file: str, contrasts: Mapping[str, str] | None) -> dict[str, int]:
    if not contrasts:
        return {}
    matching = [
        position
        for position, pattern in enumerate(contrasts.values())
        if fnmatch.fnmatch(file, pattern)
    ]
    if not matching:
        raise ValueError(
            f"expected every image to match one of the contrasts {dict(contrasts)}, got {file}"
        )
    return {"contrast": matching[0]}


def labelled_cases(
    dataset_dir: str | Path | Sequence[str | Path],
    split: str = "all",
    pattern: str = "*",
    val_fraction: float = 0.2,
    patient_pattern: str = "(.*)",
    patients: Sequence[str] | None = None,
) -> list[dict[str, str]]:
    """Images with their labels, ``[{"image": path, "label": path}, ...]``, sorted by name, each checked.

    Three layouts are supported:

        <case>_mr.nii.gz      <case>_label.nii.gz        output of a translation
        <case>.nii.gz         labels/<case>.nii.gz       input of a translation
        images/<case>.nii.gz  labels/<case>.nii.gz

    Cases without a label are left out. So are cases that cannot be read or whose label is on another grid; an error is
    logged for each. Raises ``FileNotFoundError`` if a folder does not exist, ``ValueError`` if no case is left to train
    or test on or an argument is out of range.

    Args:
        dataset_dir: one folder or several, such as translations of the same CT with different seeds.
        split: ``"all"``, ``"train"`` or ``"val"``.
        pattern: keep cases whose id matches (``*_t1_*``).
        val_fraction: share of the patients that is held out, rounded down; see [`training_cases`][].
        patient_pattern: regular expression, matched at the start of the case id; its first group is the patient.
        patients: keep the cases of these, before any is held out; ``None`` keeps all.
    """
    _check_split(split, ("all", "train", "val"), val_fraction)
    pairs = [pair for folder in ensure_tuple(dataset_dir) for pair in _labelled_pairs(Path(folder))]
    named = [(case_name(image), image, label) for image, label in pairs]
    named = [item for item in named if fnmatch.fnmatch(item[0], pattern)]
    owners = {name: patient_of(name, patient_pattern) for name, _, _ in named}
    named = [item for item in named if patients is None or owners[item[0]] in patients]
    held_out = _held_out({owners[name] for name, _, _ in named}, val_fraction)
    chosen = [
        item
        for item in named
        if split == "all" or (owners[item[0]] in held_out) == (split == "val")
    ]
    items = [
        {"image": str(image), "label": str(label)}
        for name, image, label in chosen
        if _valid(name, image, label)
    ]
    if not items and split != "val":
        raise ValueError(
            f"no labelled case of split {split!r} matches {pattern!r} in {dataset_dir}; expected <case>_mr.nii.gz "
            "beside <case>_label.nii.gz, or <case>.nii.gz and labels/<case>.nii.gz"
        )
    return items


def _labelled_pairs(root: Path) -> list[tuple[Path, Path]]:
    if not root.is_dir():
        raise FileNotFoundError(
            f"expected a folder of images and labels at {root}, found none; pass --dataset_dir"
        )
    if (root / "labels").is_dir():
        images = nifti_by_case(root / "images" if (root / "images").is_dir() else root)
        labels = nifti_by_case(root / "labels")
    else:
        files = nifti_by_case(root)
        labels = {
            case.removesuffix("_label"): path
            for case, path in files.items()
            if case.endswith("_label")
        }
        images = {
            case.removesuffix("_mr"): path for case, path in files.items() if case.endswith("_mr")
        }
    return [(images[case], labels[case]) for case in sorted(images.keys() & labels.keys())]


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
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    count = max(int(len(ranked) * val_fraction), at_least)
    return set(ranked[: min(count, len(ranked) - 1)]) if ranked else set()


def _valid(name: str, image: Path, label: Path) -> bool:
    try:
        check_volume(image)
        if not np.any(check_label(image, label)):
            logger.warning("%s: its label is empty", name)
    except ValueError as error:
        logger.error("%s is left out: %s", name, error)
        return False
    return True
