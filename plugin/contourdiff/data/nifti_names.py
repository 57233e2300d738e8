# SPDX-License-Identifier: Apache-2.0
"""Names of volume files, the case ids in them, and names that cannot be used."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from contourdiff.data.atomic import MAX_NAME_BYTES

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".mha", ".mhd")
"""Volumes that are read through ITK; all but ``.mhd``, which is two files, can be written."""
VOLUME_SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES
OUTPUT_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Volumes that can be written."""


def is_nifti(path: Path) -> bool:
    """Whether a path is a NIfTI file by its name, in upper or lower case; hidden files are not."""
    return is_volume(path, NIFTI_SUFFIXES)


def is_volume(path: Path, suffixes: tuple[str, ...] = VOLUME_SUFFIXES) -> bool:
    """Whether a path is a NIfTI, NRRD or MetaImage file by its name, as [`is_nifti`][]; or a link to no file."""
    name = path.name.lower()
    if name.startswith(".") or not name.endswith(suffixes):
        return False
    is_broken_link = path.is_symlink() and not path.exists()
    return path.is_file() or is_broken_link


def case_of(path: str | Path) -> str:
    """Case id of a file: its name without the suffix of a volume.

    Examples:
        >>> case_of("ct/A.NII.GZ"), case_of("ct/b.nrrd")
        ('A', 'b')
    """
    name = Path(path).name
    for suffix in VOLUME_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def case_name(image: str | Path) -> str:
    """Case id of an image, without the ``_mr`` of a translation."""
    return case_of(image).removesuffix("_mr")


def nifti_by_case(folder: Path) -> dict[str, Path]:
    """NIfTI files directly in a folder by case id; empty if the folder does not exist."""
    return volumes_by_case(folder, NIFTI_SUFFIXES)


def volumes_by_case(folder: Path, suffixes: tuple[str, ...] = VOLUME_SUFFIXES) -> dict[str, Path]:
    """Volume files directly in a folder by case id; empty if the folder does not exist."""
    volumes = {}
    for path in sorted(folder.glob("*")):
        if is_volume(path, suffixes):
            volumes[case_of(path)] = path
    return volumes


def printable(name: str) -> str:
    """A name as it can be logged: control characters, and bytes that are not UTF-8, are escaped."""
    return name if name.isprintable() else ascii(name)


def check_name(path: Path) -> None:
    """Raise ``ValueError`` unless a path is a folder, or named as a volume, with a text that can be printed."""
    check_encoding(path, below=True)
    if not path.name.isprintable():
        raise ValueError(
            "expected a name without control characters and special spaces, "
            f"got {path.name!a}; rename the file"
        )
    if path.is_dir():
        return
    suffix = path.name[len(case_of(path)) :]
    if not suffix:
        raise ValueError(
            f"expected a volume ({', '.join(VOLUME_SUFFIXES)}) or a DICOM folder, got {path.name}; convert it"
        )
    in_one_case = suffix in (suffix.lower(), suffix.upper())
    if not in_one_case or (suffix != suffix.lower() and suffix.lower() in (".mha", ".mhd")):
        raise ValueError(
            f"expected the suffix {suffix.lower()} in lower case, got {path.name}; rename the file"
        )


def check_encoding(path: Path, below: bool = False) -> None:
    """Raise ``ValueError`` unless a path, and all ``below`` a folder, is UTF-8: else GDCM and ITK end the program."""
    names = [str(path)]
    for parent, folders, files in os.walk(path) if below else ():
        names += [os.path.join(parent, name) for name in (*folders, *files)]
    for name in names:
        if name.isascii():
            continue
        try:
            os.fsencode(name).decode("utf-8")
        except UnicodeError as error:
            raise ValueError(
                f"expected a path in UTF-8, got {name!a}; rename the file or the folder"
            ) from error
        try:
            name.encode("utf-8")
        except UnicodeError as error:
            got = f"{sys.getfilesystemencoding()} for {name!a}"
            raise ValueError(
                f"expected an environment with UTF-8 names, got {got}; set PYTHONUTF8=1 or LC_ALL=C.UTF-8"
            ) from error


def check_name_length(path: Path) -> None:
    """Raise ``ValueError`` if the name of a file to write is longer than file systems allow."""
    size = len(os.fsencode(path.name))
    if size > MAX_NAME_BYTES:
        raise ValueError(
            f"expected names of {MAX_NAME_BYTES} bytes or less, got {size} for {path.name}; "
            "shorten the name of the input"
        )
