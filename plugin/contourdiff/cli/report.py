# SPDX-License-Identifier: Apache-2.0
"""Command that shows a folder of translations, a training, or a text with tables: report."""

from __future__ import annotations

import sys
from pathlib import Path

from contourdiff.cli.commands import argument, flag
from contourdiff.cli.program import PROGRAM


@PROGRAM.command(
    "report",
    "write pages that show a folder of translations (overview, cases, volumes, plots), or a training",
    argument("output_dir", "folder of translations or of a training, or a Markdown file"),
    argument("--ct_dir", "the CT, for the viewer: <case>.nii.gz or BIDS; default: OUTPUT_DIR/ct"),
    argument("--mr_dir", "real MR, to compare gray levels with; default: none"),
    argument(
        "--stats", "table of translate --stats (CSV); default: OUTPUT_DIR/run.json", metavar="FILE"
    ),
    argument(
        "--label_names",
        'JSON file of names by label value, {"28": "L4"}; default: none',
        metavar="FILE",
    ),
    flag("serve", "then serve the folder at 127.0.0.1, so that a browser shows the volumes"),
    argument("--port", "for --serve; default: 8010", type=int, default=8010),
    examples="""examples:
  contourdiff report mr --ct_dir ct --serve
  contourdiff translate ct mr --settings report=true     the same at the end of a run
  contourdiff report weights                             a training: loss, pictures, settings
  contourdiff report results/table.md                    a table or a model card""",
)
def _report(
    output_dir: str,
    ct_dir: str | None,
    mr_dir: str | None,
    stats: str | None,
    label_names: str | None,
    serve: bool,
    port: int,
) -> None:
    from contourdiff.report import command_line, write_markdown_page, write_report
    from contourdiff.report import serve as serve_folder
    from contourdiff.training.training_report import write_training_report

    if Path(output_dir).suffix == ".md":
        path = write_markdown_page(output_dir)
    elif any(Path(output_dir).glob("events.out.tfevents.*")):
        path = write_training_report(output_dir)
    else:
        path = write_report(
            output_dir,
            ct_dir=ct_dir,
            mr_dir=mr_dir,
            stats=stats,
            label_names=label_names,
            command=command_line(),
        )
    sys.stdout.write(f"{path}\n")
    if serve:
        sys.stdout.flush()
        serve_folder(path.parent, port)
