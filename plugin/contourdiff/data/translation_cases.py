# SPDX-License-Identifier: Apache-2.0
"""The list of translations to compute: CT volumes, each in one contrast or several."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contourdiff.data.atomic import write_json
from contourdiff.data.case_files import (
    CaseFiles,
    check_targets,
    converted_ct,
    converted_label,
    read_record,
)
from contourdiff.data.checks import check_case
from contourdiff.data.dicom_series import DicomSeries, check_replaceable
from contourdiff.data.inputs import (
    Pair,
    Source,
    find_inputs,
    input_warnings,
    is_url,
    local_nifti,
)
from contourdiff.data.label_files import masks_of, write_label
from contourdiff.data.local_labels import local_label
from contourdiff.data.nifti_names import (
    VOLUME_SUFFIXES,
    case_of,
    check_encoding,
    check_name,
    is_volume,
    printable,
)
from contourdiff.data.volumes import digest_of
from contourdiff.limits import SettingError

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class TranslationCases:
    """CT volumes to translate. [`check`][] validates all of them before any work starts, once for several contrasts.

    A case is a file (NIfTI, NRRD or MetaImage) or a folder with a DICOM series. ``<dataset_dir>/<case>.nii.gz`` may
    have a label ``<dataset_dir>/labels/<case>.nii.gz``, by the names of [`contourdiff.data.label_files`][], or masks
    in a folder ``labels/<case>``; or a datalist lists ``{"image": ..., "label": ...}``, or the folder is a BIDS dataset
    ([`contourdiff.data.bids.bids_inputs`][]). What is not NIfTI is first converted to
    ``<output_dir>/ct/<case>.nii.gz``, a label, and masks as one label, to ``<output_dir>/ct/labels``; what a URL names
    is copied there.

    Args:
        dataset_dir: one of: a folder of volumes; a folder with a subfolder per DICOM series; a DICOM folder; a BIDS
            dataset; the URL of a folder for fsspec (``s3://bucket/ct``). Paths in the datalist are relative to it.
        output_dir: folder of the translations; those with a record there are kept, not computed again.
        datalist: CSV file, or JSON file in the Decathlon form with the list ``testing``, relative to ``dataset_dir``,
            or the list of entries; ``None`` takes the folder's files.
        overwrite: translate kept cases again.
        case_suffix: behind the case id in the names of files, where a case has a single translation.
        series_uid: SeriesInstanceUID to read where a DICOM folder holds several CT series.
        contrast: the contrast to translate to, or several, as a list or with commas between them; ``None`` takes the
            first. The names of several are part of the names of files.
        contrasts: names of the network's contrasts, in its order; none for a network of a single contrast.
        output_ext: of the volumes that are written.
        outline: whether the outline of its label is added to the contour of each case, or names of the cases that get
            it; such a case without a label fails.
        bone_values: label values of bone, which gets the contour that it has in MR; a case without a label fails.
        dicom: writes MR and label as DICOM, too; ``None`` for none.
        notes: warnings about the input as a whole, where somebody else has found the cases; [`find`][] adds its own.

    Attributes:
        items: translations to compute, case after case, for a MONAI ``Dataset``. Each is a dictionary: ``image``, path
            of the CT; ``label``, path or ``None``; ``case``; ``name``, that its files begin with; ``contrast``,
            position in ``contrasts`` or ``None``; ``source``, name of the file or folder as it was given;
            ``classes``, names of the label's values where it was joined; ``outline``, whether the contour gets that of
            the label; ``bone_values``; ``warnings``, about suspicious input; ``dicom``, attributes of its DICOM files,
            or ``None``.
        failures: why a translation cannot be computed, by name.
        kept: names of translations that already have a record; one without a label gets it, if there is one now.

    Raises:
        ValueError: for a contrast that the network does not have.
    """

    dataset_dir: str | Path
    output_dir: str | Path
    datalist: str | Path | Sequence[Any] | None = None
    overwrite: bool = False
    case_suffix: str = ""
    series_uid: str | None = None
    contrast: str | Sequence[str] | None = None
    contrasts: Sequence[str] = ()
    output_ext: str = ".nii.gz"
    outline: bool | Sequence[str] = False
    bone_values: Sequence[int] = ()
    dicom: DicomSeries | None = None
    notes: Sequence[str] = ()
    items: list[dict[str, Any]] = field(default_factory=list, init=False)
    failures: dict[str, str] = field(default_factory=dict, init=False)
    kept: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.output_dir = Path(self.output_dir)
        self._labels = contrast_labels(self.contrast, self.contrasts)

    def find(self) -> dict[str, Pair]:
        """Image and label of every case by its id, none of which is read; labels that belong to no case are logged.

        Raises:
            FileNotFoundError: if the folder or the datalist does not exist.
            ValueError: if there is no case, two cases have the same id, or the folder is that of the output, or an
                output would replace an input.
        """
        pairs = find_inputs(self.dataset_dir, self.datalist)
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
        self._check_outputs(cases)
        if not self.datalist:
            self.notes = input_warnings(self.dataset_dir, pairs)
            for note in self.notes:
                logger.warning("%s", note)
        return cases

    def _check_outputs(self, cases: Mapping[str, Pair]) -> None:
        """Raise ``ValueError`` if a file to write is one of those that are read."""
        inputs: list[Source] = []
        targets: list[Path] = []
        for case, pair in cases.items():
            inputs += filter(None, pair)
            for name in self.names(case):
                targets += filter(_is_file, self._files(name).paths())
        check_targets(targets, inputs)

    def _files(self, name: str) -> CaseFiles:
        return CaseFiles(Path(self.output_dir), name, self.output_ext)

    def names(self, case: str) -> dict[str, int | None]:
        """The translations of a case: name -> position of its contrast."""
        names = {}
        for contrast, label in self._labels.items():
            suffix = f"_{contrast}" if len(self._labels) > 1 else self.case_suffix
            names[f"{case}{suffix}"] = label
        return names

    def is_outlined(self, case: str) -> bool:
        """Whether the contour of a case gets the outline of its label."""
        if isinstance(self.outline, bool):
            return self.outline
        return case in self.outline

    def is_kept(self, name: str, label: Source | None = None) -> bool:
        """Whether a translation exists, with its label if there is one, and is to be kept."""
        record = None if self.overwrite else read_record(self._files(name).record)
        if record is None:
            return False
        return label is None or record["label"] is not None

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
            missing = self._missing(case, label)
            if not missing:
                continue

            try:
                checked = self._check_case(case, image, label)
                for name in [name for name in missing if self.is_kept(name)]:
                    self._add_label(name, checked)
                    del missing[name]
            except (ValueError, OSError) as error:
                self._fail(missing, case, error)
                continue
            for name, contrast in missing.items():
                self.items.append({**checked, "name": name, "contrast": contrast})

    def _missing(self, case: str, label: Source | None) -> dict[str, int | None]:
        """Translations of a case that are to be computed, or lack their label; the others are kept, or fail by name."""
        missing = {}
        for name, contrast in self.names(case).items():
            if self.is_kept(name, label):
                self.kept.append(name)
                continue
            try:
                self._check_names(name)
                missing[name] = contrast
            except ValueError as error:
                self._fail([name], case, error)
        return missing

    def _fail(self, names: Iterable[str], case: str, error: Exception) -> None:
        logger.error("%s: %s", printable(case), error)
        for name in names:
            self.failures[printable(name)] = str(error)

    def _check_names(self, name: str) -> None:
        """Raise ``ValueError`` if files of a translation cannot be written, or its record is that of something else."""
        files = self._files(name)
        check_targets(files.paths(), ())
        if self.dicom is not None:
            check_replaceable(files.dicom)
        if files.record.exists() and not self.overwrite and read_record(files.record) is None:
            raise ValueError(
                f"expected a record of contourdiff at {files.record}, got another file; "
                "move it, or pass --overwrite to replace it"
            )

    def _add_label(self, name: str, checked: Mapping[str, Any]) -> None:
        """Write the label of a kept translation, and enter it in its record."""
        files = CaseFiles.of_record(self._files(name).record)
        record = read_record(files.record) or {}
        label = Path(checked["label"])
        translated = record.get("image_sha256")
        if translated not in (None, digest_of(checked["image"])):
            raise ValueError(
                f"expected the CT that {files.mr.name} was translated from, got another one; pass --overwrite"
            )
        write_label(label, files, checked["classes"])
        write_json(files.record, {**record, "label": label.name, "classes": checked["classes"]})
        logger.info("%s: kept, and its label was added: %s", name, files.label)
        self.kept.append(name)

    def _check_case(self, case: str, image: Source, label: Source | None) -> dict[str, Any]:
        """What the items of a case share; ``ValueError`` or ``OSError`` if it cannot be translated."""
        check_name(Path(image))
        if label is None and self.is_outlined(case):
            raise ValueError(
                "expected a label, whose outline is to be added to the contour, found none; "
                "pass the label, or translate without --outline"
            )
        if label is None and self.bone_values:
            raise ValueError(
                "expected a label, as bone_values are values of it, found none; pass the label, or no bone_values"
            )
        ct = local_nifti(image, converted_ct(self.output_dir, case), self.series_uid)
        warnings = check_case(ct)
        attributes = None
        if self.dicom is not None:
            attributes = self.dicom.attributes(case, image, ct)
        classes = None
        if label is not None:
            if not is_url(label):
                _check_label_name(Path(label))
            path = converted_label(self.output_dir, case)
            label, classes = local_label(label, path, ct)
        for warning in warnings:
            logger.warning("%s: %s", case, warning)
        return {
            "image": str(ct),
            "label": None if label is None else str(label),
            "case": case,
            "source": Path(image).name,
            "classes": classes,
            "outline": self.is_outlined(case),
            "bone_values": list(self.bone_values),
            "warnings": warnings,
            "dicom": attributes,
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
        raise SettingError(
            f"contrast must be out of {list(contrasts)}, got {unknown}; pass another"
        )
    return {name: list(contrasts).index(name) for name in names}


def _is_file(path: Path) -> bool:
    """Whether there is a file; none if its name is too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def _check_label_name(path: Path) -> None:
    """As for an image, but a DICOM file and a folder of masks may have any name."""
    if masks_of(path):
        check_encoding(path, below=True)
    elif path.is_dir() or is_volume(path):
        check_name(path)
    else:
        check_encoding(path)
