# SPDX-License-Identifier: Apache-2.0
"""Datalists: CSV, and JSON in the Decathlon form."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any


def read_split(path: Path, split: str) -> list[str]:
    """Files of a split, ``"train"`` or ``"val"``, in a CSV file (``file``, ``split``) or a JSON datalist."""
    if path.suffix == ".csv":
        with _existing(path).open(newline="") as file:
            return [row["file"] for row in csv.DictReader(file) if row["split"] == split]
    entries = read_json(path).get({"train": "training", "val": "validation"}[split], [])
    return [item["image"] if isinstance(item, dict) else item for item in entries]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"expected a datalist at {path}, found none; pass --datalist")
    return path


def read_json(path: Path) -> dict:
    """Lists of cases by name; ``FileNotFoundError`` without a file, ``ValueError`` if it is no JSON object."""
    try:
        content = json.loads(_existing(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in the datalist {path}, got: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object with lists of cases in {path}, got {type(content).__name__}")
    return content


def pair_of(root: Path, entry: Any) -> tuple[Path, Path | None]:
    """Image and label of an entry of a datalist, a path or ``{"image": path, "label": path}``, relative to ``root``."""
    named = entry if isinstance(entry, dict) else {"image": entry}
    image, label = named.get("image"), named.get("label")
    if not isinstance(image, (str, Path)) or not str(image) or not isinstance(label, (str, Path, type(None))):
        raise ValueError(f'expected {{"image": path, "label": path}} for each case, got {entry!r}; name the files')
    return root / image, root / label if label else None
