# SPDX-License-Identifier: Apache-2.0
"""The cases of a folder of translations: what their records hold, and what became of those without one."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contourdiff.data.bids import OURS, bids_images
from contourdiff.data.case_files import RECORD_ENDING, CaseFiles, converted_folder
from contourdiff.data.inputs import find_inputs, is_url
from contourdiff.data.nifti_names import OUTPUT_SUFFIXES, case_of, is_volume, volumes_by_case
from contourdiff.inference.summary import measures, read_run

SIDECARS = f"sub-*/**/anat/*{OURS}_T[12]w.json"
"""Of a BIDS derivative dataset, with the records in them."""
LAYER_NAMES = {
    "ct": "CT",
    "mr": "MR",
    "label": "label",
    "fidelity": "fidelity map",
    "uncertainty": "uncertainty",
}
"""Names of the kinds of volumes that the viewer shows, lowest first."""


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
        slices = self.record.get("slices", [])
        return [item for item in slices if not item["skipped"]]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the translation; empty where they are unknown."""
        return self.record.get("settings") or {}

    @property
    def suspects(self) -> list[dict[str, Any]]:
        """Records of the slices below the fidelity limit."""
        return [item for item in self.slices if item.get("suspect")]

    @property
    def measures(self) -> dict[str, Any]:
        """Numbers that cases are sorted and compared by; ``None`` where one is unknown."""
        return {**measures(self.record), "seconds": self.seconds}

    @property
    def picture(self) -> Path | None:
        """The picture that was drawn of the translation, if there is one."""
        path = CaseFiles(self.folder, self.name).picture
        if not path.is_file():
            return None
        return path

    @property
    def record_file(self) -> Path | None:
        """The file of the record, if there is one."""
        path = CaseFiles(self.folder, self.name).record
        if self.bids:
            path = self.folder / f"{self.name}.json"
        return path if path.is_file() else None

    def volume(self, kind: str) -> Path | None:
        """The volume ``<name>_<kind>`` of any format, if there is one."""
        mr_ending = "" if self.bids else "_mr"
        for extension in OUTPUT_SUFFIXES:
            path = CaseFiles(self.folder, self.name, extension, mr_ending).volume(kind)
            if self.bids and kind == "label":
                path = self.folder / f"{self.name.rpartition('_')[0]}_dseg{extension}"
            if path.is_file():
                return path
        return None

    def layers(self, ct: Path | None) -> list[Layer]:
        """The CT, if its file is known, and all volumes beside the record, lowest first."""
        layers = []
        for kind, name in LAYER_NAMES.items():
            path = ct if kind == "ct" else self.volume(kind)
            if path is not None:
                layers.append(Layer(name, kind, path))
        return layers


def read_cohort(
    output_dir: str | Path, rows: Sequence[Mapping[str, Any]] | None = None
) -> list[Case]:
    """Cases of a folder, or of a BIDS derivative dataset, by name: those with a record, and those that failed.

    ``rows`` have ``case``, ``status``, ``seconds`` and ``error``; ``None`` takes those that a run left, see
    [`contourdiff.inference.summary.write_run`][]. A record that cannot be read counts as failed. Raises
    ``FileNotFoundError`` without the folder, ``ValueError`` without a case in it.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"expected a folder of translations at {folder}, found none; translate CT to it"
        )
    if rows is None:
        rows = read_run(folder).get("cases", [])
    row_of = {str(row["case"]): row for row in rows}
    paths = _records(folder)
    for name, row in row_of.items():
        if row["status"] == "failed":
            paths.setdefault(name, CaseFiles(folder, name).record)
    if not paths:
        raise ValueError(
            f"expected translations with records *{RECORD_ENDING} in {folder}, found none; translate CT to it"
        )
    cases = []
    for name, path in sorted(paths.items()):
        cases.append(_case(name, path, row_of.get(name, {})))
    return cases


def _records(folder: Path) -> dict[str, Path]:
    """Files of the records, by the name of the case."""
    paths = {}
    for path in folder.glob(f"*{RECORD_ENDING}"):
        if not path.name.startswith("."):
            paths[path.name.removesuffix(RECORD_ENDING)] = path
    return paths or {path.stem: path for path in folder.glob(SIDECARS)}


def _case(name: str, path: Path, row: Mapping[str, Any]) -> Case:
    if row.get("status") == "failed":
        error = row.get("error") or "it has no record"
        return Case(name, path.parent, status="failed", error=error)
    seconds = None
    if row.get("seconds") not in (None, ""):
        seconds = float(row["seconds"])
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        is_sidecar = isinstance(content["contourdiff"], dict)
        record = content["contourdiff"] if is_sidecar else content
        return Case(
            name,
            path.parent,
            {**record, "case": record["case"]},
            status=row.get("status") or "translated",
            seconds=seconds,
            bids=is_sidecar,
        )
    except (ValueError, KeyError, TypeError) as error:
        message = f"its record is not readable: {error!r}"
        return Case(name, path.parent, status="failed", error=message)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a CSV table of cases; raises ``ValueError`` if one has no ``case`` or ``status``."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if not row.get("case") or not row.get("status"):
            raise ValueError(
                f"expected a table with the columns case and status in {path}; "
                "pass one of translate --stats"
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
    where ``datalist`` says; or in the dataset that ``output_dir`` is a derivative of. Raises ``FileNotFoundError`` if
    ``ct_dir`` is no folder.
    """
    parent = Path(output_dir).resolve().parent
    if ct_dir is None and parent.name == "derivatives":
        ct_dir = parent.parent
    files = {}
    for image in _ct_images(ct_dir, datalist):
        if not is_url(image) and is_volume(Path(image)):
            files[case_of(image)] = Path(image)
    files.update(volumes_by_case(converted_folder(output_dir)))
    cts = {}
    for case in cases:
        if case.record.get("case") in files:
            cts[case.name] = files[case.record["case"]]
    return cts


def _ct_images(ct_dir: str | Path | None, datalist: Any) -> list[Any]:
    if ct_dir is None:
        return []
    if datalist:
        return [image for image, _ in find_inputs(ct_dir, datalist)]
    if is_url(ct_dir):
        return []
    folder = Path(ct_dir)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"expected the folder of the CT at {ct_dir}, found none; pass another"
        )
    return [*folder.glob("*"), *bids_images(folder)]


def shared_values(cases: Sequence[Case], key: str) -> dict[str, list[tuple[str, int]]]:
    """Of a mapping in all records, such as ``settings``: each name's values as JSON, with their numbers of cases."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        values = case.record.get(key) or {}
        for name, value in values.items():
            text = json.dumps(value)
            counts[name][text] += 1
    return {name: counter.most_common() for name, counter in counts.items()}
