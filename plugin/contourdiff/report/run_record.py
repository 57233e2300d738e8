# SPDX-License-Identifier: Apache-2.0
"""The report at the end of a run."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contourdiff.data.atomic import write_text
from contourdiff.report.pages import FOLDER, RUN, read_run, write_report


def command_line() -> str:
    """The command that started this program, to be copied."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


@dataclass(frozen=True)
class RunReport:
    """Write the report of a run with its times and failed cases, which no record holds.

    Args:
        output_dir: see [`contourdiff.report.pages.write_report`][].
        ct_dir: see there; a path that is no folder shows no CT.
        mr_dir: see there.
    """

    output_dir: str | Path
    ct_dir: str | Path | None = None
    mr_dir: str | Path | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write it, given the rows of [`contourdiff.inference.summary.table`][]; a kept case has its earlier time."""
        before = {row["case"]: row.get("seconds") for row in read_run(self.output_dir).get("cases", [])}
        cases = [
            {"case": row["case"], "status": row["status"], "error": row["error"]}
            | {"seconds": before.get(row["case"]) if row["seconds"] is None else row["seconds"]}
            for row in rows
        ]
        run = {"command": command_line(), "finished": datetime.now(UTC).isoformat(timespec="seconds"), "cases": cases}
        write_text(Path(self.output_dir) / FOLDER / RUN, json.dumps(run, indent=2) + "\n")
        ct_dir = self.ct_dir if self.ct_dir is not None and Path(self.ct_dir).is_dir() else None
        return write_report(self.output_dir, ct_dir=ct_dir, mr_dir=self.mr_dir, command=command_line())
