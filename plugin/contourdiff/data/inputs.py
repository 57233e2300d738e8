# SPDX-License-Identifier: Apache-2.0
"""Images and labels of a folder, a BIDS dataset, a datalist or a URL, as local files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contourdiff.data.atomic import atomic_write
from contourdiff.data.bids import bids_inputs
from contourdiff.data.datalists import read_cases
from contourdiff.data.dicom import has_ct_series, is_dicom
from contourdiff.data.itk_files import convert_to_nifti
from contourdiff.data.nifti_names import (
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    case_of,
    is_volume,
    volumes_by_case,
)

Source = str | Path
"""A path, or a URL as a string."""
Pair = tuple[Source, Source | None]
"""Image and label of a case."""
REMOTE_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".mha")
"""Volumes of one file; ``.mhd`` is two."""


def is_url(source: Any) -> bool:
    """Whether a source is read through fsspec: ``s3://bucket/ct``, ``file:///data/ct``."""
    return isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]+://", source) is not None


def find_inputs(
    dataset_dir: Source,
    datalist: str | Path | Sequence[Any] | None = None,
    section: str = "testing",
) -> list[Pair]:
    """Image and label of every case, as in [`contourdiff.data.translation_cases.TranslationCases`][].

    Raises:
        FileNotFoundError: if the folder or the datalist does not exist.
        ValueError: for a datalist that lists no files.
    """
    if not is_url(dataset_dir) and not Path(dataset_dir).is_dir():
        raise FileNotFoundError(
            f"expected a folder of CT volumes at {dataset_dir}, found none; pass --dataset_dir"
        )
    if datalist:
        return _listed_inputs(dataset_dir, datalist, section)
    if is_url(dataset_dir):
        return _remote_inputs(str(dataset_dir).rstrip("/"))
    root = Path(dataset_dir)
    return list(bids_inputs(root) or _folder_inputs(root))


def local_nifti(source: Source, path: Path, series_uid: str | None = None) -> Path:
    """The file itself if it is local NIfTI, or the file that it is converted or copied to: ``path``, or beside it.

    Raises:
        ValueError: if it cannot be read.
    """
    local = local_file(source, path)
    if not local.is_dir() and not local.name.lower().endswith(ITK_SUFFIXES):
        return local
    convert_to_nifti(local, path, series_uid)
    if is_url(source):
        local.unlink()
    return path


def local_file(source: Source, path: Path) -> Path:
    """The file itself, or the copy beside ``path`` of what a URL names; ``ValueError`` if that cannot be read."""
    if not is_url(source):
        return Path(source)
    copy = path.with_name(Path(source).name)
    _fetch(str(source), copy)
    return copy


def _listed_inputs(root: Source, datalist: str | Path | Sequence[Any], section: str) -> list[Pair]:
    entries: Any = datalist
    if isinstance(datalist, (str, Path)):
        path = Path(datalist) if is_url(root) else Path(root) / datalist
        entries = read_cases(path, section)
    if not isinstance(entries, (list, tuple)):
        raise ValueError(
            f"expected a list of cases, got {type(entries).__name__}; list one entry a case"
        )
    return [_pair_of(root, entry) for entry in entries]


def _pair_of(root: Source, entry: Any) -> Pair:
    """Image and label of an entry of a datalist, a path or ``{"image": path, "label": path}``, relative to ``root``."""
    files = entry if isinstance(entry, dict) else {"image": entry}
    image = files.get("image") or None
    label = files.get("label")
    if not isinstance(image, (str, Path)) or not isinstance(label, (str, Path, type(None))):
        raise ValueError(
            f'expected {{"image": path, "label": path}} for each case, got {entry!r}; name the files'
        )
    return _joined(root, image), _joined(root, label) if label else None


def _joined(root: Source, name: Source) -> Source:
    if is_url(name):
        return name
    if is_url(root):
        return f"{str(root).rstrip('/')}/{name}"
    return Path(root) / name


def _folder_inputs(root: Path) -> list[Pair]:
    """Volumes and DICOM folders directly in a folder; or the folder itself, if it holds the files of a DICOM study."""
    content = sorted(root.iterdir())
    labels = volumes_by_case(root / "labels")
    images = [path for path in content if is_volume(path)]
    if not images and any(is_dicom(path) for path in content):
        images = [root.resolve()]
    else:
        folders = [path for path in content if path.is_dir() and path.name != "labels"]
        images += [folder for folder in folders if has_ct_series(folder)]
    return [(image, labels.get(case_of(image))) for image in images]


def _remote_inputs(url: str) -> list[Pair]:
    """Volumes directly in a remote folder, and their labels in its folder ``labels``."""
    import fsspec

    system, root = fsspec.core.url_to_fs(url)
    system.invalidate_cache()  # what was there in an earlier run of this process

    def volumes_in(folder: str) -> dict[str, str]:
        urls = {}
        for name in sorted(system.ls(folder, detail=False)) if system.isdir(folder) else []:
            hidden = Path(name).name.startswith(".")
            if name.lower().endswith(REMOTE_SUFFIXES) and not hidden:
                urls[name] = str(system.unstrip_protocol(name))
        return urls

    labels = {case_of(name): address for name, address in volumes_in(f"{root}/labels").items()}
    images = volumes_in(root)
    return [(address, labels.get(case_of(name))) for name, address in images.items()]


def _fetch(url: str, path: Path) -> None:
    import fsspec

    try:
        with atomic_write(path) as aside:
            system, name = fsspec.core.url_to_fs(url)
            system.get_file(name, str(aside))
    except ImportError:
        raise
    except Exception as error:  # each file system has errors of its own
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"expected a readable file at {url}, got {reason}; check address and access"
        ) from error
