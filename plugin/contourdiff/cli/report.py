# SPDX-License-Identifier: Apache-2.0
"""Command that shows a folder of translations: report."""

from __future__ import annotations

import sys

from contourdiff.cli.commands import argument, command, flag


@command(
    "report",
    "write pages that show a folder of translations: cohort, cases, volumes, plots",
    argument("output_dir", "folder of translations; its index.html is the report"),
    argument("--ct_dir", "the CT that were translated, for the viewer: <case>.nii.gz; they are linked or copied"),
    argument("--mr_dir", "real MR, whose gray levels are drawn beside those of the translations"),
    argument("--stats", "table of translate --stats (CSV), for times and failed cases", metavar="FILE"),
    flag("serve", "then serve the folder at 127.0.0.1, so that a browser shows the volumes"),
    argument("--port", "port of --serve; default: 8000", type=int, default=8000),
    examples="""examples:
  contourdiff report mr --ct_dir ct --serve
  contourdiff translate ct mr --settings report=true     the same at the end of a run""",
)
def _report(output_dir: str, ct_dir: str | None, mr_dir: str | None, stats: str | None, serve: bool, port: int) -> None:
    from contourdiff.report import serve as serve_folder
    from contourdiff.report import write_report
    from contourdiff.report.run_record import command_line

    path = write_report(output_dir, ct_dir=ct_dir, mr_dir=mr_dir, stats=stats, command=command_line())
    sys.stdout.write(f"{path}\n")
    if serve:
        sys.stdout.flush()
        serve_folder(output_dir, port)
