# SPDX-License-Identifier: Apache-2.0
"""Names of the files of a translation: the one place that knows them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contourdiff.data.atomic import link_file, read_json
from contourdiff.data.nifti_names import OUTPUT_SUFFIXES, check_name_length

RECORD_ENDING = "_mr.json"


@dataclass(frozen=True)
class CaseFiles:
    """Files of one translation, whether or not they exist.

    In a folder of translations they are ``<name>_mr.nii.gz``, ``<name>_mr.json`` (the record), ``<name>_mr.png`` (the
    picture), ``<name>_label.nii.gz``, ``<name>_label.json`` (names of its values, where they are known),
    ``<name>_fidelity.nii.gz`` and ``<name>_uncertainty.nii.gz``, and the folder ``<name>_dicom``. Those of a single MR
    are named after its file: ``<name>.nii.gz``, ``<name>.json``, ``<name>.png``, ``<name>_label.nii.gz`` ...

    Args:
        folder: folder of the files.
        name: the case id, with ``_<contrast>`` behind it where a case is translated to several contrasts.
        extension: of the volumes.
        mr_ending: what MR, record and picture have behind the name; empty for a single MR.
    """

    folder: Path
    name: str
    extension: str = ".nii.gz"
    mr_ending: str = "_mr"

    @classmethod
    def of_record(cls, record: Path) -> CaseFiles:
        """Files beside the record ``<name>_mr.json``, with the extension of the MR there."""
        name = record.name.removesuffix(RECORD_ENDING)
        for extension in OUTPUT_SUFFIXES:
            files = cls(record.parent, name, extension)
            if files.mr.is_file():
                return files
        return cls(record.parent, name)

    def volume(self, kind: str) -> Path:
        """The volume ``mr``, ``label``, ``fidelity`` or ``uncertainty``."""
        ending = self.mr_ending if kind == "mr" else f"_{kind}"
        return self.folder / f"{self.name}{ending}{self.extension}"

    @property
    def mr(self) -> Path:
        """The translation."""
        return self.volume("mr")

    @property
    def label(self) -> Path:
        """The label of the CT."""
        return self.volume("label")

    @property
    def classes(self) -> Path:
        """Names of the values of the label."""
        return self.folder / f"{self.name}_label.json"

    @property
    def fidelity(self) -> Path:
        """The fidelity map."""
        return self.volume("fidelity")

    @property
    def uncertainty(self) -> Path:
        """The uncertainty map."""
        return self.volume("uncertainty")

    @property
    def dicom(self) -> Path:
        """Folder of MR and label as DICOM."""
        return self.folder / f"{self.name}_dicom"

    @property
    def picture(self) -> Path:
        """Slices of CT, contour and MR, side by side."""
        return self.folder / f"{self.name}{self.mr_ending}.png"

    @property
    def record(self) -> Path:
        """How the MR was computed; written last, so that it stands for a whole translation."""
        return self.folder / f"{self.name}{self.mr_ending}.json"

    def paths(self) -> list[Path]:
        """All files but DICOM, the record last."""
        volumes = [self.mr, self.label, self.fidelity, self.uncertainty]
        return [*volumes, self.classes, self.picture, self.record]

    def remove_old(self, with_label: bool) -> None:
        """Remove what a translation that is replaced has and the new one may not: its record first, then its maps.

        Args:
            with_label: whether the new one has a label, which replaces the old one.
        """
        record = read_record(self.record)
        if record is None:
            return
        self.record.unlink()
        old = [self.fidelity, self.uncertainty]
        if record["label"] is not None and not with_label:
            old.append(self.label)
        if record.get("classes"):
            old.append(self.classes)
        for path in old:
            path.unlink(missing_ok=True)
        if record.get("dicom"):
            shutil.rmtree(self.dicom, ignore_errors=True)

    def link_to(self, target: CaseFiles) -> None:
        """Link, or else copy, the files that exist to the names of ``target``."""
        for source, path in zip(self.paths(), target.paths(), strict=True):
            if source.is_file():
                link_file(source, path)

    def move_to(self, target: CaseFiles) -> None:
        """Move the files that exist to the names of ``target``, on the same file system."""
        for source, path in zip(self.paths(), target.paths(), strict=True):
            if source.is_file():
                os.replace(source, path)


def read_record(path: Path) -> dict[str, Any] | None:
    """Content of the record of a translation; ``None`` if there is none, or another file."""
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return None
    is_ours = isinstance(record, dict) and {"case", "contourdiff", "label"} <= record.keys()
    return record if is_ours else None


def check_targets(
    targets: Iterable[Path], inputs: Iterable[str | Path], overwrite: bool = True
) -> None:
    """Raise ``ValueError`` if files to write would replace an input, under any name of it, or must not be replaced.

    Args:
        targets: files to write.
        inputs: files that are read; those that do not exist are ignored.
        overwrite: whether other files may be replaced.
    """
    read = {_identity(path) for path in inputs if os.path.exists(path)}
    replaced_inputs = []
    existing = []
    for target in targets:
        check_name_length(target)
        if not os.path.lexists(target):
            continue
        if target.exists() and _identity(target) in read:
            replaced_inputs.append(str(target))
        elif not overwrite or target.is_dir():
            existing.append(str(target))
    if replaced_inputs:
        raise ValueError(
            f"expected outputs other than the input and its label, got {', '.join(replaced_inputs)}; "
            "pass another output"
        )
    if existing:
        raise ValueError(
            f"expected no file at {existing[0]}, found {', '.join(existing)}; pass --overwrite or another name"
        )


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def converted_folder(output_dir: str | Path) -> Path:
    """Where a run writes CT that were not NIfTI files; their labels are in its folder ``labels``."""
    return Path(output_dir) / "ct"


def converted_ct(output_dir: str | Path, case: str) -> Path:
    """The CT of a case, if it was converted."""
    return converted_folder(output_dir) / f"{case}.nii.gz"


def converted_label(output_dir: str | Path, case: str) -> Path:
    """The label of a case, if it was converted."""
    return converted_folder(output_dir) / "labels" / f"{case}.nii.gz"
