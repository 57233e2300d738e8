# SPDX-License-Identifier: Apache-2.0
"""Names of volume files and the case ids in them."""

from __future__ import annotations

from pathlib import Path

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
    if path.name.startswith(".") or not path.name.lower().endswith(suffixes):
        return False
    return path.is_file() or (path.is_symlink() and not path.exists())


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
