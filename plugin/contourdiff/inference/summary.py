# SPDX-License-Identifier: Apache-2.0
"""Summary of a run: what became of its cases, as log lines, as a table and beside the records."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from contourdiff.data.atomic import atomic_write, write_csv, write_text
from contourdiff.data.bids import write_derivatives

logger = logging.getLogger(__name__)
RUN = "run.json"
"""Beside the records: what became of each case, and the time it took, which no record holds."""


class Outcome(NamedTuple):
    """What became of the cases of a run."""

    completed: dict[str, float]
    """Seconds of each case that was translated."""
    kept: list[str]
    failures: dict[str, str]
    """Why a case was not translated."""

    def add(self, other: Outcome) -> None:
        """Take the cases of another outcome."""
        self.completed.update(other.completed)
        self.kept.extend(other.kept)
        self.failures.update(other.failures)


def report(
    outcomes: Mapping[str, Outcome],
    output_dir: str | Path,
    stats: str | Path | None = None,
    bids_dir: str | Path | None = None,
    pages: Callable[[], object] | None = None,
) -> None:
    """Log what became of the cases of each ``case_suffix``, and write it to ``run.json``, see [`write_run`][].

    ``stats`` is a file for a table of them, ``bids_dir`` a folder for [`contourdiff.data.bids.write_derivatives`][];
    ``pages`` writes a report. Raises ``ValueError`` if a case failed.
    """
    messages = []
    for suffix, (completed, kept, failures) in outcomes.items():
        for case in kept:
            logger.info(
                "%s: kept, its translation already exists (pass --overwrite true to translate it again)",
                case,
            )
        for case, reason in failures.items():
            logger.error("%s: failed, %s", case, reason)
        counts = len(completed), len(kept), len(failures)
        logger.info(
            "%d translated, %d kept, %d failed; results are in %s",
            *counts,
            Path(output_dir).resolve(),
        )
        if failures:
            named = "; ".join(f"{case}: {reason}" for case, reason in list(failures.items())[:3])
            more = "; ..." if counts[2] > 3 else ""
            contrast = f"{suffix[1:]}: " if len(outcomes) > 1 else ""
            messages.append(
                f"{contrast}{len(failures)} of {sum(counts)} cases failed: {named}{more}"
            )
    rows = [
        row
        for suffix, outcome in outcomes.items()
        for row in table(outcome, Path(output_dir), suffix)
    ]
    write_run(output_dir, rows)
    if stats is not None:
        write_table(stats, rows)
    if bids_dir is not None:
        done = [
            (case, suffix)
            for suffix, outcome in outcomes.items()
            for case in [*outcome.completed, *outcome.kept]
        ]
        write_derivatives(
            [Path(output_dir, f"{case}{suffix}_mr.json") for case, suffix in done], bids_dir
        )
    if pages is not None:
        pages()
    if messages:
        raise ValueError("; ".join(messages))


def table(outcome: Outcome, output_dir: Path, case_suffix: str = "") -> list[dict[str, Any]]:
    """A row for each case, by name: numbers from its record, which a case that failed does not have."""
    cases = sorted([*outcome.completed, *outcome.kept, *outcome.failures])
    rows = []
    for case in cases:
        error = outcome.failures.get(case)
        path = output_dir / f"{case}{case_suffix}_mr.json"
        record = json.loads(path.read_text(encoding="utf-8")) if error is None else {}
        status = (
            "failed" if error is not None else "translated" if case in outcome.completed else "kept"
        )
        rows.append(
            {
                "case": f"{case}{case_suffix}",
                "status": status,
                "shape": "x".join(map(str, record.get("shape", []))) or None,
                "spacing_mm": "x".join(f"{size:g}" for size in record.get("spacing_mm", []))
                or None,
                "seconds": round(outcome.completed[case], 3) if case in outcome.completed else None,
                **measures(record),
                "warnings": "; ".join(record.get("warnings", [])) or None,
                "error": error,
            }
        )
    return rows


def measures(record: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of a record that cases are compared by, means over the translated slices; ``None`` where unknown."""
    slices, fidelity = record.get("slices", []), record.get("fidelity") or {}
    drawn = [item for item in slices if not item["skipped"]]
    return {
        "slices": len(slices) if record else None,
        "translated_slices": len(drawn) if record else None,
        "accepted_share": fmean(item["accepted"] for item in drawn) if drawn else None,
        "mean": fmean(item["mean"] for item in drawn) if drawn else None,
        "fidelity": fidelity.get("fidelity_median"),
        "suspects": len(fidelity["suspects"]) if fidelity else None,
        "flicker": (record.get("flicker") or {}).get("flicker"),
    }


def write_run(output_dir: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Enter status, time and error of each row of [`table`][] in ``<output_dir>/run.json``.

    A kept case keeps the time that it took once, and cases of earlier runs that this one had not stay as they are.
    """
    cases = {row["case"]: row for row in read_run(output_dir).get("cases", [])}
    for row in rows:
        earlier = (
            cases.get(row["case"], {}).get("seconds") if row["status"] == "kept" else row["seconds"]
        )
        cases[row["case"]] = {name: row[name] for name in ("case", "status", "error")} | {
            "seconds": earlier
        }
    content = {
        "finished": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "cases": [cases[name] for name in sorted(cases)],
    }
    write_text(Path(output_dir) / RUN, json.dumps(content, indent=2) + "\n")


def read_run(output_dir: str | Path) -> dict[str, Any]:
    """What [`write_run`][] left: ``finished``, of the last run, and rows ``cases``; empty if it cannot be read."""
    try:
        content = json.loads((Path(output_dir) / RUN).read_text(encoding="utf-8"))
        rows = [row for row in content["cases"] if row["case"] and row["status"]]
        return {"finished": content["finished"], "cases": rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def check_table(path: str | Path) -> None:
    """Raise ``ValueError`` if a table cannot be written to ``path`` by its suffix, ``ImportError`` without pyarrow."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise ValueError(
            f"expected a file *.csv or *.parquet for the table of cases, got {path}; name it so"
        )
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ImportError("*.parquet requires pyarrow: pip install pyarrow, or write a *.csv")


def write_table(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV or Parquet, by the suffix, whole or not at all; errors as [`check_table`][]."""
    check_table(path)
    if Path(path).suffix.lower() == ".csv":
        write_csv(path, rows)
        return
    import pyarrow
    import pyarrow.parquet

    with atomic_write(path) as aside:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), aside)
