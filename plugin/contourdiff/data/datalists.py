# SPDX-License-Identifier: Apache-2.0
"""Datalists: CSV, and JSON in the Decathlon form."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SECTIONS = {"train": "training", "val": "validation"}
TO_TRANSLATE = "testing"
"""List of the cases to translate."""


def read_split(path: Path, split: str) -> list[str]:
    """Files of a split, ``"train"`` or ``"val"``, in a CSV file (``file``, ``split``) or a JSON datalist.

    Raises ``FileNotFoundError`` without a file, ``ValueError`` if it cannot be read or a column is missing.
    """
    if path.suffix.lower() == ".csv":
        rows = _read_csv(path, ("file", "split"))
        return [row["file"] for row in rows if row["split"] == split]
    lists = read_json(path)
    files = []
    for entry in lists.get(SECTIONS[split], []):
        is_item = isinstance(entry, dict)
        files.append(entry["image"] if is_item else entry)
    return files


def read_cases(path: Path) -> Any:
    """Entries ``{"image": ..., "label": ...}`` of a CSV file with these columns, or of ``testing`` in a JSON datalist.

    The column ``label`` may be absent, or empty for a case. Raises ``FileNotFoundError`` without a file, ``ValueError``
    if it cannot be read, or without the column ``image`` or the list.
    """
    if path.suffix.lower() == ".csv":
        return _read_csv(path, ("image",))
    lists = read_json(path)
    if TO_TRANSLATE not in lists:
        raise ValueError(
            f"expected the list {TO_TRANSLATE!r} in {path}, got {sorted(lists)}; name the list so"
        )
    return lists[TO_TRANSLATE]


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


def _read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    try:
        with _existing(path).open(encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or []
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"expected CSV in the datalist {path}, got: {error}; save it as CSV in UTF-8"
        ) from error
    for column in columns:
        if column not in header:
            raise ValueError(
                f"expected a column {column!r} in {path}, got {header}; name the column so"
            )
    return rows


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"expected a datalist at {path}, found none; pass --datalist")
    return path
