# SPDX-License-Identifier: Apache-2.0
"""Summary of a run: what became of its translations, as log lines, as a table and beside the records."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from contourdiff.data.atomic import atomic_write, read_json, write_csv, write_json
from contourdiff.data.bids import write_derivatives
from contourdiff.data.case_files import CaseFiles
from contourdiff.limits import SettingError

logger = logging.getLogger(__name__)
RUN = "run.json"
"""Beside the records: what became of each translation, and the time it took, which no record holds."""
SHOWN_FAILURES = 3
Row = dict[str, Any]
"""A line of the summary: what became of a translation."""


class FailedCasesError(ValueError):
    """Translations failed, and all others are done.

    Attributes:
        results: what became of each, of [`contourdiff.translation.translate_path`][]; empty elsewhere.
    """

    results: Sequence[Any] = ()


def summary_row(
    name: str,
    status: str,
    record: Mapping[str, Any] | None = None,
    *,
    seconds: float | None = None,
    error: str | None = None,
) -> Row:
    """A line of the summary, ``None`` where a value is unknown.

    Args:
        name: of the translation, as its files are named.
        status: ``translated``, ``kept`` or ``failed``.
        record: of the translation; ``None`` without one.
        seconds: time that the translation took.
        error: why it failed.
    """
    record = record or {}
    sizes = [f"{size:g}" for size in record.get("spacing_mm", [])]
    return {
        "case": name,
        "status": status,
        "shape": "x".join(map(str, record.get("shape", []))) or None,
        "spacing_mm": "x".join(sizes) or None,
        "seconds": None if seconds is None else round(seconds, 3),
        **measures(record),
        "warnings": "; ".join(record.get("warnings", [])) or None,
        "error": error,
    }


def kept_rows(names: Iterable[str], output_dir: str | Path) -> list[Row]:
    """Lines of translations that existed before the run, from their records."""
    rows = []
    for name in dict.fromkeys(names):  # each once
        files = CaseFiles(Path(output_dir), name)
        record = read_json(files.record)
        rows.append(summary_row(name, "kept", record))
    return rows


def failed_rows(failures: Mapping[str, str]) -> list[Row]:
    """Lines of translations that failed: name -> reason."""
    return [summary_row(name, "failed", error=reason) for name, reason in failures.items()]


def measures(record: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of a record that cases are compared by, means over the translated slices; ``None`` where unknown."""
    slices = record.get("slices", [])
    translated = [item for item in slices if not item["skipped"]]
    fidelity = record.get("fidelity") or {}
    flicker = record.get("flicker") or {}
    return {
        "slices": len(slices) if record else None,
        "translated_slices": len(translated) if record else None,
        "accepted_share": _mean_of("accepted", translated),
        "mean": _mean_of("mean", translated),
        "fidelity": fidelity.get("fidelity_median"),
        "suspects": len(fidelity["suspects"]) if fidelity else None,
        "flicker": flicker.get("flicker"),
    }


def _mean_of(key: str, slices: Sequence[Mapping[str, Any]]) -> float | None:
    if not slices:
        return None
    return fmean(item[key] for item in slices)


def write_summary(
    rows: Sequence[Row],
    output_dir: str | Path,
    stats: str | Path | None = None,
    bids_dir: str | Path | None = None,
    pages: Callable[[], object] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Log what became of each translation, and write it to ``run.json``, see [`write_run`][].

    Args:
        rows: lines of the summary, in any order.
        output_dir: folder of the translations.
        stats: file for a table of them, see [`write_table`][].
        bids_dir: folder for [`contourdiff.data.bids.write_derivatives`][].
        pages: writes a report.
        notes: warnings about the input as a whole, which were logged before.

    Raises:
        FailedCasesError: if a translation failed, after all is written.
    """
    rows = sorted(rows, key=lambda row: row["case"])
    kept = [row for row in rows if row["status"] == "kept"]
    failed = [row for row in rows if row["status"] == "failed"]
    for row in kept:
        logger.info(
            "%s: kept, its translation already exists (pass --overwrite true to translate it again)",
            row["case"],
        )
    for row in failed:
        logger.error("%s: failed, %s", row["case"], row["error"])
    logger.info(
        "%d translated, %d kept, %d failed; results are in %s",
        len(rows) - len(kept) - len(failed),
        len(kept),
        len(failed),
        Path(output_dir).resolve(),
    )
    write_run(output_dir, rows, notes)
    if stats is not None:
        write_table(stats, rows)
    if bids_dir is not None:
        names = [row["case"] for row in rows if row["status"] != "failed"]
        records = [CaseFiles(Path(output_dir), name).record for name in names]
        write_derivatives(records, bids_dir)
    if pages is not None:
        pages()
    if failed:
        reasons = [f"{row['case']}: {row['error']}" for row in failed[:SHOWN_FAILURES]]
        if len(failed) > SHOWN_FAILURES:
            reasons.append("...")
        raise FailedCasesError(f"{len(failed)} of {len(rows)} cases failed: {'; '.join(reasons)}")


def write_run(output_dir: str | Path, rows: Iterable[Row], notes: Sequence[str] = ()) -> None:
    """Enter status, time, warnings and error of each line in ``<output_dir>/run.json``, and ``notes`` about the input.

    A kept translation keeps the time that it took once, and those of earlier runs that this one had not stay.
    """
    entries = {row["case"]: row for row in read_run(output_dir).get("cases", [])}
    for row in rows:
        seconds = row["seconds"]
        if row["status"] == "kept":
            seconds = entries.get(row["case"], {}).get("seconds")
        entries[row["case"]] = {
            "case": row["case"],
            "status": row["status"],
            "error": row["error"],
            "warnings": row["warnings"],
            "seconds": seconds,
        }
    content = {
        "finished": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "warnings": list(notes),
        "cases": [entries[name] for name in sorted(entries)],
    }
    write_json(Path(output_dir) / RUN, content)


def read_run(output_dir: str | Path) -> dict[str, Any]:
    """What [`write_run`][] left: ``finished`` and ``warnings`` of the last run, and rows ``cases``.

    It is empty if it cannot be read.
    """
    try:
        content = read_json(Path(output_dir) / RUN)
        rows = [row for row in content["cases"] if row["case"] and row["status"]]
        notes = [str(note) for note in content.get("warnings", [])]
        return {"finished": content["finished"], "warnings": notes, "cases": rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def check_table(path: str | Path) -> None:
    """Raise ``ValueError`` if a table cannot be written to ``path`` by its suffix, ``ImportError`` without pyarrow."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise SettingError(
            f"expected a file *.csv or *.parquet for the table of cases, got {path}; name it so"
        )
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ImportError("*.parquet requires pyarrow: pip install pyarrow, or write a *.csv")


def write_table(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV or Parquet, by the suffix, whole or not at all; errors as [`check_table`][]."""
    check_table(path)
    if Path(path).suffix.lower() == ".csv":
        write_csv(path, rows)
        return
    import pyarrow
    import pyarrow.parquet

    with atomic_write(path) as aside:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), aside)
