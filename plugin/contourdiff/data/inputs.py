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


def is_url(source: Any) -> bool:
    """Whether a source is read through fsspec: ``s3://bucket/ct``, ``file:///data/ct``."""
    return isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]+://", source) is not None


def find_inputs(
    dataset_dir: Source,
    datalist: str | Path | Sequence[Any] | None = None,
    section: str = "testing",
) -> list[Pair]:
    """Image and label of every case; arguments and errors as in [`contourdiff.data.cases.TranslationCases`][]."""
    if not is_url(dataset_dir) and not Path(dataset_dir).is_dir():
        raise FileNotFoundError(
            f"expected a folder of CT volumes at {dataset_dir}, found none; pass --dataset_dir"
        )
    if datalist:
        entries: Any = datalist
        if isinstance(datalist, (str, Path)):
            entries = read_cases(
                Path(datalist) if is_url(dataset_dir) else Path(dataset_dir) / datalist, section
            )
        if not isinstance(entries, (list, tuple)):
            raise ValueError(
                f"expected a list of cases, got {type(entries).__name__}; list one entry a case"
            )
        return [_pair_of(dataset_dir, entry) for entry in entries]
    if is_url(dataset_dir):
        return _remote_inputs(str(dataset_dir).rstrip("/"))
    root = Path(dataset_dir)
    return list(bids_inputs(root) or _folder_inputs(root))


def local_nifti(source: Source, path: Path, series_uid: str | None = None) -> Path:
    """The file itself if it is local NIfTI, or the file that it is converted or copied to: ``path``, or beside it.

    Raises ``ValueError`` if it cannot be read.
    """
    if is_url(source):
        copy = path.with_name(Path(source).name)
        _fetch(str(source), copy)
        if is_volume(copy, NIFTI_SUFFIXES):
            return copy
        convert_to_nifti(copy, path, series_uid)
        copy.unlink()
        return path
    source = Path(source)
    if source.is_dir() or source.name.lower().endswith(ITK_SUFFIXES):
        convert_to_nifti(source, path, series_uid)
        return path
    return source


def _joined(root: Source, name: Source) -> Source:
    if is_url(name):
        return name
    return f"{str(root).rstrip('/')}/{name}" if is_url(root) else Path(root) / name


def _pair_of(root: Source, entry: Any) -> Pair:
    """Image and label of an entry of a datalist, a path or ``{"image": path, "label": path}``, relative to ``root``."""
    named = entry if isinstance(entry, dict) else {"image": entry}
    image, label = named.get("image"), named.get("label")
    if (
        not isinstance(image, (str, Path))
        or not str(image)
        or not isinstance(label, (str, Path, type(None)))
    ):
        raise ValueError(
            f'expected {{"image": path, "label": path}} for each case, got {entry!r}; name the files'
        )
    return _joined(root, image), _joined(root, label) if label else None


def _folder_inputs(root: Path) -> list[Pair]:
    labels, inside = volumes_by_case(root / "labels"), sorted(root.iterdir())
    volumes = [path for path in inside if is_volume(path)]
    folders = [path for path in inside if path.is_dir() and path.name != "labels"]
    images = volumes + [path for path in folders if has_ct_series(path)]
    if not volumes and any(map(is_dicom, inside)):
        images = [root.resolve()]  # the folder itself is the study
    return [(path, labels.get(case_of(path))) for path in images]


def _remote_inputs(url: str) -> list[Pair]:
    """Volumes directly in a remote folder, and their labels in its folder ``labels``."""
    import fsspec

    system, root = fsspec.core.url_to_fs(url)
    system.invalidate_cache()  # what was there in an earlier run of this process

    def volumes(folder: str) -> list[str]:
        names = system.ls(folder, detail=False) if system.isdir(folder) else []
        suffixes = NIFTI_SUFFIXES + ITK_SUFFIXES[:-1]  # *.mhd is two files
        return [
            name
            for name in sorted(names)
            if name.lower().endswith(suffixes) and Path(name).name[0] != "."
        ]

    labels = {
        case_of(name): str(system.unstrip_protocol(name)) for name in volumes(f"{root}/labels")
    }
    return [(system.unstrip_protocol(name), labels.get(case_of(name))) for name in volumes(root)]


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
