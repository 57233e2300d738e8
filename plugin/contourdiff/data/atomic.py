# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

MAX_NAME_BYTES = 255
"""Bytes in the name of a file, at most, of all common file systems."""
OWNER: ContextVar[str] = ContextVar("owner", default="file")
"""Who writes the partial files of this thread: they are named after it, so that it can be cleaned up after."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it becomes ``path`` on success and vanishes on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix
    if path.name.lower().endswith(".nii.gz"):
        suffix = path.name[-len(".nii.gz") :]
    writer = f"{OWNER.get()}-{uuid.uuid4().hex[:8]}"  # two runs may write one file
    end = f".{writer}.partial{suffix}"
    stem = os.fsencode(path.name.removesuffix(suffix))[: MAX_NAME_BYTES - 1 - len(end)]
    aside = path.with_name(f".{stem.decode('utf-8', 'ignore')}{end}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` to fill; it becomes ``path`` on success and vanishes on failure.

    Raises ``ValueError`` if ``path`` is a file or a folder with content.
    """
    path = Path(path).resolve()
    is_empty_folder = path.is_dir() and not any(path.iterdir())
    if path.exists() and not is_empty_folder:
        raise ValueError(
            f"expected a new or an empty folder to write to at {path}, got one with content; name another"
        )
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_partial_files(folder: str | Path, owner: str = "*", older_than_s: float = 0) -> None:
    """Remove what writers that were killed left in a folder and its subfolders; ``owner`` is a value of `OWNER`."""
    for path in Path(folder).rglob(f".*.{owner}-????????.partial*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()


def copy_file(source: str | Path, path: str | Path) -> None:
    """Copy a file, whole or not at all."""
    with atomic_write(path) as aside:
        shutil.copyfile(source, aside)


def link_file(source: str | Path, path: str | Path) -> None:
    """Link a file, or copy it where the file systems differ, whole or not at all."""
    with atomic_write(path) as aside:
        try:
            os.link(Path(source).resolve(), aside)
        except OSError:
            shutil.copyfile(source, aside)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, UTF-8, whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Value of a JSON file; ``OSError`` or ``ValueError`` if it cannot be read."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def save_figure(figure: Any, path: str | Path, **options: Any) -> None:
    """Write a matplotlib figure as PNG, whole or not at all; ``options`` are those of ``Figure.savefig``."""
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png", **options)


def write_csv(
    path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write a CSV file, a line for each row, whole or not at all.

    ``columns`` are the keys to write of each row. ``None`` takes all keys of the first row, which must exist, and the
    other rows must have the same.
    """
    names = columns or list(rows[0])
    extra_keys: Literal["ignore", "raise"] = "ignore" if columns else "raise"
    with atomic_write(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction=extra_keys)
        writer.writeheader()
        writer.writerows(rows)


def without_nan(value: Any) -> Any:
    """The same with ``None`` for every NaN, in dictionaries, lists and tuples to any depth: JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
