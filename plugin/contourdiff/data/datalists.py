# SPDX-License-Identifier: Apache-2.0
"""Datalists: CSV, and JSON in the Decathlon form."""

from __future__ import annotations

import csv
import json
from pathlib import Path


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
        content = json.loads(_existing(path).read_text())
    except ValueError as error:
        raise ValueError(f"expected JSON in the datalist {path}, got: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object with lists of cases in {path}, got {type(content).__name__}")
    return content
