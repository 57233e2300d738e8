# SPDX-License-Identifier: Apache-2.0
"""Datalists: CSV, and JSON in the Decathlon form."""

from __future__ import annotations

import csv
import io
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


def read_cases(path: Path, section: str) -> Any:
    """Entries ``{"image": ..., "label": ...}`` of a CSV file with these columns, or of a list in a JSON datalist.

    The column ``label`` may be absent, or empty for a case. Raises ``FileNotFoundError`` without a file, ``ValueError``
    without the column ``image`` or the list.
    """
    if path.suffix.lower() == ".csv":
        try:
            rows = csv.DictReader(
                io.StringIO(_existing(path).read_text(encoding="utf-8-sig")), strict=True
            )
            names, entries = rows.fieldnames or [], list(rows)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"expected CSV in the datalist {path}, got: {error}; save it as CSV in UTF-8"
            ) from error
        if "image" not in names:
            raise ValueError(
                f"expected a column 'image' in {path}, got {names}; name the column so"
            )
        return entries
    content = read_json(path)
    if section not in content:
        raise ValueError(
            f"expected the list {section!r} in {path}, got {sorted(content)}; name the list so"
        )
    return content[section]


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
        raise ValueError(
            f"expected a JSON object with lists of cases in {path}, got {type(content).__name__}"
        )
    return content
