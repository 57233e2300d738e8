# SPDX-License-Identifier: Apache-2.0
"""The report of a training: loss, time, sample pictures and settings as Markdown and as a page."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from contourdiff.data.atomic import write_text
from contourdiff.report import write_markdown_page
from contourdiff.training.loss_curve import loss_curve


def write_training_report(output_dir: str | Path) -> Path:
    """Write ``training.md`` and ``loss.png`` into the folder of a training, and the page of both; returns its path.

    Errors are those of [`contourdiff.training.loss_curve.loss_curve`][].
    """
    folder = Path(output_dir)
    train, val = loss_curve(folder, folder / "loss.png")
    first, last = (
        f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M} UTC" for time in train[[0, -1], 0]
    )
    facts = {
        "folder": f"`{folder}`",
        "first and last step": f"{first}, {last}",
        "steps": f"{int(train[-1, 1]):,}",
    }
    if len(val):
        best = val[val[:, 2].argmin()]
        facts["validation loss"] = (
            f"{val[-1, 2]:.4f} after epoch {val[-1, 1]:.0f}, lowest {best[2]:.4f} after {best[1]:.0f}"
        )
    pictures = {
        int(path.stem.split("_")[1]): path.name
        for path in sorted(folder.glob("translations_[0-9]*.png"))
    }
    lines = [f"# Training {folder.resolve().name}", "", *_table("training", facts), "## Loss", ""]
    lines += ["![Loss of training and validation by step](loss.png)", "", "## Pictures", ""]
    for epoch, name in pictures.items():
        lines += [
            f"### Epoch {epoch}",
            "",
            f"![Held-out slices after epoch {epoch}: image, contour, translation]({name})",
            "",
        ]
    if (folder / "settings.json").is_file():
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        lines += [
            "## Settings",
            "",
            *_table(
                "setting", {name: f"`{json.dumps(value)}`" for name, value in settings.items()}
            ),
        ]
    write_text(folder / "training.md", "\n".join(lines) + "\n")
    return write_markdown_page(folder / "training.md")


def _table(head: str, rows: dict[str, str]) -> list[str]:
    return [
        f"| {head} | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
    ]
