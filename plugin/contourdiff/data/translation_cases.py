# SPDX-License-Identifier: Apache-2.0
"""The list of translations to compute: CT volumes, each in one contrast or several."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contourdiff.data.case_files import CaseFiles, converted_ct, converted_label
from contourdiff.data.checks import check_case, check_name
from contourdiff.data.inputs import Pair, Source, find_inputs, is_url, local_nifti
from contourdiff.data.local_labels import local_label
from contourdiff.data.nifti_names import VOLUME_SUFFIXES, case_of

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class TranslationCases:
    """CT volumes to translate. [`check`][] validates all of them before any work starts, once for several contrasts.

    A case is a file (NIfTI, NRRD or MetaImage) or a folder with a DICOM series. ``<dataset_dir>/<case>.nii.gz`` may
    have a label ``<dataset_dir>/labels/<case>.nii.gz``; or a datalist lists ``{"image": ..., "label": ...}``, or the
    folder is a BIDS dataset ([`contourdiff.data.bids.bids_inputs`][]). What is not NIfTI is first converted to
    ``<output_dir>/ct/<case>.nii.gz``, a label to ``<output_dir>/ct/labels``; what a URL names is copied there.

    Args:
        dataset_dir: one of: a folder of volumes; a folder with a subfolder per DICOM series; a DICOM folder; a BIDS
            dataset; the URL of a folder for fsspec (``s3://bucket/ct``). Paths in the datalist are relative to it.
        output_dir: folder of the translations; those with a record there are kept, not computed again.
        datalist: CSV file, or JSON file in the Decathlon form, relative to ``dataset_dir``, or the list of entries;
            ``None`` takes the folder's files.
        section: list of the datalist to use.
        overwrite: translate kept cases again.
        case_suffix: behind the case id in the names of files, where a case has a single translation.
        series_uid: SeriesInstanceUID to read where a DICOM folder holds several CT series.
        contrast: the contrast to translate to, or several, as a list or with commas between them; ``None`` takes the
            first. The names of several are part of the names of files.
        contrasts: names of the network's contrasts, in its order; none for a network of a single contrast.

    Attributes:
        items: translations to compute, case after case, for a MONAI ``Dataset``. Each is a dictionary: ``image``, path
            of the CT; ``label``, path or ``None``; ``case``; ``name``, that its files begin with; ``contrast``,
            position in ``contrasts`` or ``None``; ``source``, name of the file or folder as it was given;
            ``warnings``, about suspicious input.
        failures: why a translation cannot be computed, by name.
        kept: names of translations that already have a record.

    Raises:
        ValueError: for a contrast that the network does not have.
    """

    dataset_dir: str | Path
    output_dir: str | Path
    datalist: str | Path | Sequence[Any] | None = None
    section: str = "testing"
    overwrite: bool = False
    case_suffix: str = ""
    series_uid: str | None = None
    contrast: str | Sequence[str] | None = None
    contrasts: Sequence[str] = ()
    items: list[dict[str, Any]] = field(default_factory=list, init=False)
    failures: dict[str, str] = field(default_factory=dict, init=False)
    kept: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.output_dir = Path(self.output_dir)
        self._labels = contrast_labels(self.contrast, self.contrasts)

    def find(self) -> dict[str, Pair]:
        """Image and label of every case by its id, none of which is read.

        Raises:
            FileNotFoundError: if the folder or the datalist does not exist.
            ValueError: if there is no case, two cases have the same id, or the folder is that of the output.
        """
        pairs = find_inputs(self.dataset_dir, self.datalist, self.section)
        if not pairs:
            kinds = f"({', '.join(VOLUME_SUFFIXES)}) or CT in DICOM in {self.dataset_dir}"
            raise ValueError(f"expected volumes {kinds}, found none; pass another --dataset_dir")
        cases: dict[str, Pair] = {}
        repeated = set()
        for image, label in pairs:
            case = case_of(image)
            if case in cases:
                repeated.add(case)
            cases[case] = (image, label)
        if repeated:
            raise ValueError(f"expected one file a case, got twice: {sorted(repeated)}")
        if not self.datalist and not is_url(self.dataset_dir):
            root = Path(self.dataset_dir)
            if root.resolve() == Path(self.output_dir).resolve():
                raise ValueError(
                    f"expected an output folder other than the input, got {root} twice; pass another"
                )
        return cases

    def names(self, case: str) -> dict[str, int | None]:
        """The translations of a case: name -> position of its contrast."""
        names = {}
        for contrast, label in self._labels.items():
            suffix = f"_{contrast}" if len(self._labels) > 1 else self.case_suffix
            names[f"{case}{suffix}"] = label
        return names

    def is_kept(self, name: str) -> bool:
        """Whether a translation exists and is to be kept."""
        return not self.overwrite and CaseFiles(Path(self.output_dir), name).record.is_file()

    def check(self, pairs: Mapping[str, Pair] | None = None) -> None:
        """Read every case that is to be translated, and set the attributes; a case that fails is logged and left out.

        Args:
            pairs: result of [`find`][], if it is known; errors are raised as there.
        """
        self.items.clear()  # a dataset holds this list
        self.failures.clear()
        self.kept.clear()
        pairs = self.find() if pairs is None else pairs
        for case, (image, label) in pairs.items():
            missing = {}
            for name, contrast in self.names(case).items():
                if self.is_kept(name):
                    self.kept.append(name)
                else:
                    missing[name] = contrast
            if not missing:
                continue

            try:
                checked = self._check_case(case, image, label)
            except (ValueError, OSError) as error:
                logger.error("%s: %s", printable(case), error)
                for name in missing:
                    self.failures[printable(name)] = str(error)
                continue
            for name, contrast in missing.items():
                self.items.append({**checked, "name": name, "contrast": contrast})

    def _check_case(self, case: str, image: Source, label: Source | None) -> dict[str, Any]:
        """What the items of a case share; ``ValueError`` or ``OSError`` if it cannot be translated."""
        check_name(Path(image))
        ct = local_nifti(image, converted_ct(self.output_dir, case), self.series_uid)
        warnings = check_case(ct)
        if label is not None:
            label = local_label(label, converted_label(self.output_dir, case), ct)
        for warning in warnings:
            logger.warning("%s: %s", case, warning)
        return {
            "image": str(ct),
            "label": None if label is None else str(label),
            "case": case,
            "source": Path(image).name,
            "warnings": warnings,
        }


def contrast_names(contrast: str | Sequence[str] | None) -> list[str]:
    """Names of contrasts that are given as a list, or as a text with commas between them."""
    if isinstance(contrast, str):
        return [name.strip() for name in contrast.split(",")]
    return list(contrast or [])


def contrast_labels(
    contrast: str | Sequence[str] | None, contrasts: Sequence[str]
) -> dict[str, int | None]:
    """The contrasts to translate to: name -> position in ``contrasts``, or ``None`` if these are empty.

    Raises:
        ValueError: for an unknown contrast, or several without ``contrasts``.
    """
    names = contrast_names(contrast) or list(contrasts[:1]) or [""]
    if not contrasts and len(names) == 1:
        return {names[0]: None}
    unknown = [name for name in names if name not in contrasts]
    if unknown:
        raise ValueError(f"contrast must be out of {list(contrasts)}, got {unknown}; pass another")
    return {name: list(contrasts).index(name) for name in names}


def printable(name: str) -> str:
    """A name as it can be logged: control characters are escaped."""
    return name if name.isprintable() else ascii(name)
