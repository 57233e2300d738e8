# SPDX-License-Identifier: Apache-2.0
"""Images and labels of a folder, a BIDS dataset, a datalist or a URL, as local files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contourdiff.data.atomic import atomic_write
from contourdiff.data.bids import bids_inputs
from contourdiff.data.datalists import read_cases
from contourdiff.data.dicom import has_ct_series, is_dicom
from contourdiff.data.itk_files import convert_to_nifti
from contourdiff.data.label_files import (
    check_classes,
    is_label,
    label_entries,
    masks_of,
    match_labels,
    unused_warning,
)
from contourdiff.data.nifti_names import (
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    case_of,
    check_encoding,
    is_volume,
    printable,
)

Source = str | Path
"""A path, or a URL as a string."""
Pair = tuple[Source, Source | None]
"""Image and label of a case."""
REMOTE_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".mha")
"""Volumes of one file; ``.mhd`` is two."""
LABELS = "labels"
"""Folder of the labels, in that of the CT."""
LABEL_WORDS = ("label", "seg", "mask")
"""What a folder that should have been called ``labels`` has in its name."""


def is_url(source: Any) -> bool:
    """Whether a source is read through fsspec: ``s3://bucket/ct``, ``file:///data/ct``."""
    return isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]+://", source) is not None


def find_inputs(
    dataset_dir: Source, datalist: str | Path | Sequence[Any] | None = None
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
        return _listed_inputs(dataset_dir, datalist)
    if is_url(dataset_dir):
        return _remote_inputs(str(dataset_dir).rstrip("/"))
    root = Path(dataset_dir)
    return list(bids_inputs(root) or _folder_inputs(root))


def is_local_nifti(source: Source) -> bool:
    """Whether a source is read where it is, see [`local_nifti`][]."""
    if is_url(source):
        return False
    source = Path(source)
    return not source.is_dir() and not source.name.lower().endswith(ITK_SUFFIXES)


def local_nifti(source: Source, path: Path, series_uid: str | None = None) -> Path:
    """The file itself if it is local NIfTI, or the file that it is converted or copied to: ``path``, or beside it.

    Raises:
        ValueError: if it cannot be read.
    """
    local = local_file(source, path)
    if is_local_nifti(local):
        return local
    if not is_url(source):
        check_encoding(local, below=True)
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


def input_warnings(dataset_dir: Source, pairs: Sequence[Pair]) -> list[str]:
    """What of the labels of a folder of cases is not used: a line for each file, with the name that was expected."""
    cases = [case_of(image) for image, _ in pairs]
    used = {label.name for label in _labels_of(pairs)}
    warnings = []
    for name, label in _labels_in(dataset_dir).items():
        if name not in used or not _is_usable(label):
            warnings.append(unused_warning(LABELS, name, cases))
    if is_url(dataset_dir):
        return warnings
    for folder in sorted(Path(dataset_dir).iterdir()):
        is_named_so = any(word in folder.name.lower() for word in LABEL_WORDS)
        if is_named_so and folder.name != LABELS and masks_of(folder):
            warnings.append(
                f"{printable(folder.name)} is not used: expected labels in {LABELS}; rename the folder"
            )
    return warnings


def _listed_inputs(root: Source, datalist: str | Path | Sequence[Any]) -> list[Pair]:
    entries: Any = datalist
    if isinstance(datalist, (str, Path)):
        path = Path(datalist)
        if not is_url(root):
            path = Path(root) / path
        entries = read_cases(path)
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
    images = [path for path in content if is_volume(path)]
    if not images and any(is_dicom(path) for path in content):
        images = [root.resolve()]
    else:
        folders = [path for path in content if path.is_dir() and path.name != LABELS]
        images += [folder for folder in folders if _is_case(folder)]
    pairs = _with_labels(images, _labels_in(root))
    check_classes(_labels_of(pairs))
    return pairs


def _is_case(folder: Path) -> bool:
    """Whether a folder holds CT in DICOM, or DICOM that must not be given to GDCM, and is refused where it is read."""
    try:
        check_encoding(folder, below=True)
    except ValueError:
        return any(is_dicom(path) for path in folder.rglob("*"))
    return has_ct_series(folder)


def _with_labels(images: Sequence[Source], labels: Mapping[str, Source]) -> list[Pair]:
    usable = [name for name, label in labels.items() if _is_usable(label)]
    cases = [case_of(image) for image in images]
    by_case = match_labels(cases, usable)
    pairs: list[Pair] = []
    for case, image in zip(cases, images, strict=True):
        label = None
        if case in by_case:
            label = labels[by_case[case]]
        pairs.append((image, label))
    return pairs


def _is_usable(label: Source) -> bool:
    """Whether what lies among the labels can be one; a remote file is not opened."""
    return is_url(label) or is_label(Path(label))


def _labels_of(pairs: Sequence[Pair]) -> list[Path]:
    return [Path(label) for _, label in pairs if label is not None]


def _labels_in(dataset_dir: Source) -> Mapping[str, Source]:
    """All that is in the folder ``labels`` of a folder of CT, by name."""
    if not is_url(dataset_dir):
        return label_entries(Path(dataset_dir) / LABELS)
    return _remote_files(f"{str(dataset_dir).rstrip('/')}/{LABELS}")


def _remote_inputs(url: str) -> list[Pair]:
    """Volumes directly in a remote folder, and their labels in its folder ``labels``."""
    images = []
    for name, address in _remote_files(url).items():
        if name.lower().endswith(REMOTE_SUFFIXES):
            images.append(address)
    labels: dict[str, Source] = {}
    for name, label in _labels_in(url).items():
        if name.lower().endswith(REMOTE_SUFFIXES):
            labels[name] = label
    return _with_labels(images, labels)


def _remote_files(url: str) -> dict[str, str]:
    """Addresses of what is directly in a remote folder, by name, without hidden files; empty if there is none."""
    import fsspec

    system, root = fsspec.core.url_to_fs(url)
    system.invalidate_cache()  # what was there in an earlier run of this process
    urls: dict[str, str] = {}
    if not system.isdir(root):
        return urls
    for path in sorted(system.ls(root, detail=False)):
        name = Path(path).name
        is_itself = path.rstrip("/") == root.rstrip("/")
        if not name.startswith(".") and not is_itself:
            urls[name] = str(system.unstrip_protocol(path))
    return urls


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
