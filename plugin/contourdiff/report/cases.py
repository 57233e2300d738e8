# SPDX-License-Identifier: Apache-2.0
"""The cases of a folder of translations: what their records hold, and what became of those without one."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contourdiff.data.bids import OURS, bids_images
from contourdiff.data.inputs import find_inputs, is_url
from contourdiff.data.nifti_names import OUTPUT_SUFFIXES, case_of, is_volume, volumes_by_case
from contourdiff.inference.summary import measures, read_run

RECORD = "_mr.json"
SIDECARS = f"sub-*/**/anat/*{OURS}_T[12]w.json"
"""Of a BIDS derivative dataset, with the records in them."""
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

    ``status`` is ``translated``, ``kept`` or ``failed``; ``seconds`` and ``error`` are known from the run alone. In a
    BIDS derivative dataset ``name`` is that of the MR, and ``folder`` the one that it is in.
    """

    name: str
    folder: Path
    record: Mapping[str, Any] = field(default_factory=dict)
    status: str = "translated"
    seconds: float | None = None
    error: str | None = None
    bids: bool = False

    @property
    def slices(self) -> list[dict[str, Any]]:
        """Records of the translated slices."""
        return [item for item in self.record.get("slices", []) if not item["skipped"]]

    @property
    def suspects(self) -> list[dict[str, Any]]:
        """Records of the slices below the fidelity limit."""
        return [item for item in self.slices if item.get("suspect")]

    @property
    def measures(self) -> dict[str, Any]:
        """Numbers that cases are sorted and compared by; ``None`` where one is unknown."""
        return measures(self.record) | {"seconds": self.seconds}

    @property
    def picture(self) -> Path | None:
        """The picture that was drawn of the translation, if there is one."""
        path = self.folder / f"{self.name}_mr.png"
        return path if path.is_file() else None

    def volume(self, kind: str) -> Path | None:
        """The volume ``<name>_<kind>`` of any format, if there is one."""
        stem = f"{self.name}_{kind}"
        if self.bids:
            stem = {"mr": self.name, "label": f"{self.name.rpartition('_')[0]}_dseg"}.get(
                kind, stem
            )
        found = [self.folder / f"{stem}{suffix}" for suffix in OUTPUT_SUFFIXES]
        return next((path for path in found if path.is_file()), None)

    def layers(self, ct: Path | None) -> list[Layer]:
        """The CT, if its file is known, and all volumes beside the record, lowest first."""
        names = {
            "mr": "MR",
            "label": "label",
            "fidelity": "fidelity map",
            "uncertainty": "uncertainty",
        }
        found = {"ct": ct, **{kind: self.volume(kind) for kind in names}}
        return [
            Layer({"ct": "CT", **names}[kind], kind, path)
            for kind, path in found.items()
            if path is not None
        ]


def read_cohort(output_dir: str | Path, rows: Sequence[Row] | None = None) -> list[Case]:
    """Cases of a folder, or of a BIDS derivative dataset, by name: those with a record, and those that failed.

    ``rows`` are those of [`contourdiff.inference.summary.summary_row`][], with ``case``, ``status``, ``seconds``, ``error``;
    ``None`` takes what [`contourdiff.inference.summary.write_run`][] left. A record that cannot be read counts as
    failed. Raises ``FileNotFoundError`` without the folder, ``ValueError`` without a case in it.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"expected a folder of translations at {folder}, found none; translate CT to it"
        )
    rows = read_run(folder).get("cases", []) if rows is None else rows
    known = {str(row["case"]): row for row in rows}
    records = {
        path.name.removesuffix(RECORD): path
        for path in folder.glob(f"*{RECORD}")
        if path.name[0] != "."
    }
    records = records or {path.stem: path for path in folder.glob(SIDECARS)}
    paths = {
        name: folder / f"{name}{RECORD}" for name, row in known.items() if row["status"] == "failed"
    } | records
    if not paths:
        raise ValueError(
            f"expected translations with records *{RECORD} in {folder}, found none; translate CT to it"
        )
    return [_case(name, paths[name], known.get(name, {})) for name in sorted(paths)]


def _case(name: str, path: Path, row: Row) -> Case:
    if row.get("status") == "failed":
        return Case(
            name, path.parent, status="failed", error=row.get("error") or "it has no record"
        )
    seconds = float(row["seconds"]) if row.get("seconds") not in (None, "") else None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        bids = isinstance(record["contourdiff"], dict)  # the record in a sidecar
        record = record["contourdiff"] if bids else record
        status = row.get("status") or "translated"
        return Case(
            name, path.parent, record | {"case": record["case"]}, status, seconds, bids=bids
        )
    except (ValueError, KeyError, TypeError) as error:
        return Case(
            name, path.parent, status="failed", error=f"its record is not readable: {error!r}"
        )


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a CSV table of cases; ``ValueError`` if one has no ``case`` or ``status``."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(not row.get("case") or not row.get("status") for row in rows):
        raise ValueError(
            f"expected a table with the columns case and status in {path}; pass one of translate --stats"
        )
    return rows


def ct_files(
    cases: Sequence[Case],
    output_dir: str | Path,
    ct_dir: str | Path | None = None,
    datalist: Any = None,
) -> dict[str, Path]:
    """The CT of each case, by name, where there is a file.

    They are in the folder ``ct`` that a run writes what was no NIfTI to; in ``ct_dir``, a folder or a BIDS dataset, or
    where ``datalist`` says; or in the dataset that ``output_dir`` is a derivative of. ``FileNotFoundError`` for a
    ``ct_dir`` that is none.
    """
    above = Path(output_dir).resolve().parent
    ct_dir = above.parent if ct_dir is None and above.name == "derivatives" else ct_dir
    images: list[Any] = []
    if datalist and ct_dir is not None:
        images = [image for image, _ in find_inputs(ct_dir, datalist)]
    elif ct_dir is not None and not is_url(ct_dir):
        if not Path(ct_dir).is_dir():
            raise FileNotFoundError(
                f"expected the folder of the CT at {ct_dir}, found none; pass another"
            )
        images = [*Path(ct_dir).glob("*"), *bids_images(Path(ct_dir))]
    files = {
        case_of(path): Path(path) for path in images if not is_url(path) and is_volume(Path(path))
    }
    files |= volumes_by_case(Path(output_dir) / "ct")
    return {
        case.name: files[case.record["case"]] for case in cases if case.record.get("case") in files
    }


def shared_values(cases: Sequence[Case], key: str) -> dict[str, list[tuple[str, int]]]:
    """Of a mapping in all records, such as ``settings``: each name's values as JSON, with their numbers of cases."""
    counts: dict[str, Counter[str]] = {}
    for case in cases:
        for name, value in (case.record.get(key) or {}).items():
            counts.setdefault(name, Counter())[json.dumps(value)] += 1
    return {name: counter.most_common() for name, counter in counts.items()}
