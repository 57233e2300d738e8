# SPDX-License-Identifier: Apache-2.0
"""The cases of a folder of translations: what their records hold, and what became of those without one."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from contourdiff.data.nifti import OUTPUT_SUFFIXES
from contourdiff.data.nifti_names import volumes_by_case

RECORD = "_mr.json"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Layer:
    """A volume of a case that the viewer shows: its name, its kind, and its file."""

    name: str
    kind: str
    path: Path


@dataclass(frozen=True)
class Case:
    """A case of a run, by the name of its files: ``<name>_mr.json``; without a record it failed.

    ``status`` is ``translated``, ``kept`` or ``failed``; ``seconds`` and ``error`` are known from the run alone.
    """

    name: str
    folder: Path
    record: Mapping[str, Any] = field(default_factory=dict)
    status: str = "translated"
    seconds: float | None = None
    error: str | None = None

    @property
    def slices(self) -> list[dict[str, Any]]:
        """Records of the translated slices."""
        return [item for item in self.record.get("slices", []) if not item["skipped"]]

    @property
    def suspects(self) -> list[dict[str, Any]]:
        """Records of the slices below the fidelity limit."""
        return [item for item in self.slices if item.get("suspect")]

    @property
    def measures(self) -> dict[str, float | None]:
        """Numbers that cases are sorted and compared by; ``None`` where one is unknown."""
        slices = self.slices
        return {
            "fidelity": (self.record.get("fidelity") or {}).get("fidelity_median"),
            "flicker": (self.record.get("flicker") or {}).get("flicker"),
            "mean": fmean(item["mean"] for item in slices) if slices else None,
            "accepted": fmean(item["accepted"] for item in slices) if slices else None,
            "seconds": self.seconds,
        }

    @property
    def picture(self) -> Path | None:
        """The picture that was drawn of the translation, if there is one."""
        path = self.folder / f"{self.name}_mr.png"
        return path if path.is_file() else None

    def volume(self, kind: str) -> Path | None:
        """The volume ``<name>_<kind>`` of any format, if there is one."""
        found = [self.folder / f"{self.name}_{kind}{suffix}" for suffix in OUTPUT_SUFFIXES]
        return next((path for path in found if path.is_file()), None)

    def layers(self, ct: Path | None) -> list[Layer]:
        """The CT, if its file is known, and all volumes beside the record, lowest first."""
        names = {"mr": "MR", "label": "label", "fidelity": "fidelity map", "uncertainty": "uncertainty"}
        found = {"ct": ct, **{kind: self.volume(kind) for kind in names}}
        return [Layer({"ct": "CT", **names}[kind], kind, path) for kind, path in found.items() if path is not None]


def read_cohort(output_dir: str | Path, rows: Iterable[Row] = ()) -> list[Case]:
    """Cases of a folder by name: those with a record, and those that failed by ``rows``.

    ``rows`` are those of [`contourdiff.inference.summary.table`][], with ``case``, ``status``, ``seconds``, ``error``.
    A record that cannot be read counts as failed. Raises ``FileNotFoundError`` without the folder, ``ValueError``
    without a case in it.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder of translations at {folder}, found none; translate CT to it")
    known = {str(row["case"]): row for row in rows}
    names = {path.name.removesuffix(RECORD) for path in folder.glob(f"*{RECORD}") if not path.name.startswith(".")}
    failed = {name for name, row in known.items() if row["status"] == "failed"}
    if not names | failed:
        raise ValueError(f"expected translations with records *{RECORD} in {folder}, found none; translate CT to it")
    return [_case(folder, name, known.get(name, {})) for name in sorted(names | failed)]


def _case(folder: Path, name: str, row: Row) -> Case:
    path = folder / f"{name}{RECORD}"
    seconds = float(row["seconds"]) if row.get("seconds") not in (None, "") else None
    if row.get("status") == "failed" or not path.is_file():
        return Case(name, folder, status="failed", error=row.get("error") or "it has no record")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Case(name, folder, record | {"case": record["case"]}, row.get("status") or "translated", seconds)
    except (ValueError, KeyError, TypeError) as error:
        return Case(name, folder, status="failed", error=f"its record is not readable: {error!r}")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a CSV table of cases; ``ValueError`` if one has no ``case`` or ``status``."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(not row.get("case") or not row.get("status") for row in rows):
        raise ValueError(f"expected a table with the columns case and status in {path}; pass one of translate --stats")
    return rows


def ct_files(cases: Sequence[Case], ct_dir: str | Path | None) -> dict[str, Path]:
    """The CT of each case, by name: in ``ct_dir``, or in the folder ``ct`` that a run writes what was no NIfTI to."""
    places = [case.folder / "ct" for case in cases[:1]]
    if ct_dir is not None:
        places.append(Path(ct_dir))
    if not places[-1].is_dir() and ct_dir is not None:
        raise FileNotFoundError(f"expected the folder of the CT at {ct_dir}, found none; pass another")
    files = {case: path for place in places for case, path in volumes_by_case(place).items()}
    return {case.name: files[case.record["case"]] for case in cases if case.record.get("case") in files}


def shared_values(cases: Sequence[Case], key: str) -> dict[str, list[tuple[str, int]]]:
    """Of a mapping in all records, such as ``settings``: each name's values as JSON, with their numbers of cases."""
    counts: dict[str, Counter[str]] = {}
    for case in cases:
        for name, value in (case.record.get(key) or {}).items():
            counts.setdefault(name, Counter())[json.dumps(value)] += 1
    return {name: counter.most_common() for name, counter in counts.items()}
