# SPDX-License-Identifier: Apache-2.0
"""The report of a training: loss, time, sample pictures and settings as Markdown and as a page."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from contourdiff.data.atomic import write_text
from contourdiff.report import write_markdown_page
from contourdiff.tables import markdown_table
from contourdiff.training.loss_curve import loss_curve


def write_training_report(output_dir: str | Path) -> Path:
    """Write ``training.md`` and ``loss.png`` into the folder of a training, and the page of both; returns its path.

    Errors are those of [`contourdiff.training.loss_curve.loss_curve`][].
    """
    folder = Path(output_dir)
    train, val = loss_curve(folder, folder / "loss.png")
    facts = [
        ("folder", f"`{folder}`"),
        ("first and last step", f"{_time_of(train[0])}, {_time_of(train[-1])}"),
        ("steps", f"{int(train[-1, 1]):,}"),
    ]
    if len(val):
        last = val[-1]
        best = val[val[:, 2].argmin()]
        text = f"{last[2]:.4f} after epoch {last[1]:.0f}, lowest {best[2]:.4f} after {best[1]:.0f}"
        facts.append(("validation loss", text))
    sections = [
        f"# Training {folder.resolve().name}",
        markdown_table(("training", ""), facts),
        "## Loss",
        "![Loss of training and validation by step](loss.png)",
        "## Pictures",
    ]
    for picture in sorted(folder.glob("translations_[0-9]*.png"), key=_epoch_of):
        epoch = _epoch_of(picture)
        text = f"Held-out slices after epoch {epoch}: image, contour, translation"
        sections += [f"### Epoch {epoch}", f"![{text}]({picture.name})"]
    settings_file = folder / "settings.json"
    if settings_file.is_file():
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        rows = [(name, f"`{json.dumps(value)}`") for name, value in settings.items()]
        sections += ["## Settings", markdown_table(("setting", ""), rows)]
    write_text(folder / "training.md", "\n\n".join(sections) + "\n")
    return write_markdown_page(folder / "training.md")


def _time_of(step: np.ndarray) -> str:
    return f"{datetime.fromtimestamp(step[0], UTC):%Y-%m-%d %H:%M} UTC"


def _epoch_of(picture: Path) -> int:
    return int(picture.stem.split("_")[1])
