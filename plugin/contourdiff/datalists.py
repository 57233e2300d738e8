# SPDX-License-Identifier: Apache-2.0
"""Lists of cases: what to train on and what to translate."""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import json
from pathlib import Path

NIFTI_SUFFIXES = (".nii.gz", ".nii")


def case_of(path: str | Path) -> str:
    """Case id of a file: its name without ``.nii`` or ``.nii.gz``."""
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in NIFTI_SUFFIXES if name.lower().endswith(suffix)), name)


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
    if not path.is_file():
        raise FileNotFoundError(f"expected a datalist at {path}, found none")
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [(row["file"], row["split"]) for row in csv.DictReader(file)]
    content = json.loads(path.read_text())
    names = {"training": "train", "validation": "val"}
    return [
        (item["image"] if isinstance(item, dict) else item, names[section])
        for section in names
        for item in content.get(section, [])
    ]


def _is_nifti(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(NIFTI_SUFFIXES) and not path.name.startswith(".")


def _name_hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
