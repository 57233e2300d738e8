# SPDX-License-Identifier: Apache-2.0
"""What each row of the experiment costs: data, time, parameters, network evaluations."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from contourdiff.bundle import find_bundle
from contourdiff.data.atomic import write_text
from contourdiff.weights import count_parameters, sha256_of
from contourdiff_lab.experiment.rows import row_of

COSTS_HEADER = [
    "| row | learns from | translator: minutes | budget | parameters, M | evaluations a slice "
    "| segmentation: minutes a network | epochs | parameters, M |",
    "|---|---|---|---|---|---|---|---|---|",
]
COSTS_NOTE = """\
Minutes of the translator and of a segmentation network (of all folds together for `upper_bound`) on this computer, mean
over seeds, `/` between networks. Evaluations: of a network for each translated slice, all candidates and steps. What a
row learns from is without the CT with labels that its segmentation network needs. The shipped translator's figures are
those of its model card, on another computer, without the weights that it started from.
"""
Record = dict[str, Any]


@contextmanager
def stopwatch(path: Path) -> Iterator[Callable[[], float]]:
    """Count the seconds of a block in a file, on from those of an earlier run that was interrupted; yields the count.

    A process that is killed leaves the count of the run before.
    """
    before = float(path.read_text(encoding="utf-8")) if path.is_file() else 0.0
    start = time.monotonic()

    def seconds() -> float:
        return round(before + time.monotonic() - start, 1)

    try:
        yield seconds
    finally:
        write_text(path, f"{seconds()}\n")


def cost_lines(folder: Path, rows: Sequence[str], bundle: str | Path | None = None) -> list[str]:
    """Lines of a Markdown table on the rows of an experiment's folder, a line for each row."""
    lines = [
        f"| {' | '.join([row, *_translator(folder, row, bundle), *_segmentation(folder / row)])} |"
        for row in rows
    ]
    return [*COSTS_HEADER, *lines, "", COSTS_NOTE]


def _translator(folder: Path, row: str, bundle: str | Path | None) -> list[str]:
    """What it learns from, minutes, budget, parameters, evaluations."""
    own = [_read(path) for path in sorted((folder / row).glob("weights*/trained.json"))]
    evaluations = [
        _evaluations(_read(path)) for path in (folder / row).glob("translations_*/*_mr.json")
    ]
    if not own and not evaluations:
        return [row_of(row).learns_from, *["-"] * 4]
    trained = own or [_shipped(folder, bundle)]
    minutes = _mean([record["seconds"] / 60 for record in trained if "seconds" in record], 1)
    parameters = _mean(
        [record["parameters"] / 1e6 for record in trained if "parameters" in record], 2
    )
    return [
        row_of(row).learns_from,
        minutes,
        _budget(trained[0]),
        parameters,
        _mean(evaluations, 0),
    ]


def _shipped(folder: Path, bundle: str | Path | None) -> Record:
    """The bundle's own translator, if it is the one that the plan names; nothing is known about another."""
    root = find_bundle(bundle)
    files = sorted((root / "models").glob("*.pt"))
    if _read(folder / "plan.json").get("weights") not in [sha256_of(path) for path in files]:
        return {}
    facts: Record = _read(root / "configs" / "metadata.json").get("training", {})
    return {**facts, "parameters": sum(count_parameters(path) for path in files)}


def _budget(trained: Record) -> str:
    """Limit of a training, and the images that it has seen."""
    minutes = {**trained, **trained.get("settings", {})}.get("minutes")
    limit = (
        [f"{minutes:g} min"]
        if minutes
        else [f"{trained['epochs']} epochs"]
        if "epochs" in trained
        else []
    )
    counts = [f"{trained[name]:,} {name}" for name in ("iterations", "images") if name in trained]
    return ", ".join([*limit, *counts]) or "n/a"


def _evaluations(record: Record) -> float:
    """Evaluations a translated slice: one of a generator; of a diffusion model rounds x candidates x steps."""
    settings = record["settings"]
    rounds = [entry["rounds"] for entry in record["slices"] if not entry["skipped"]]
    if "Generator" in record["inferer"] or not rounds:
        return 1.0
    steps = settings["num_inference_steps"] + settings["num_refinement_steps"] * (
        "refiner" in record["weights"]
    )
    return float(np.mean(rounds) * settings["candidates"] * steps)


def _segmentation(folder: Path) -> list[str]:
    """Minutes, epochs and parameters of a row's segmentation networks, ``/`` between architectures."""
    cells: dict[str, list[Path]] = {}
    for path in sorted(
        folder.glob("*_translation*_seed*"),
        key=lambda path: (not path.name.startswith("unet"), path),
    ):
        cells.setdefault(path.name.split("_translation")[0], []).append(path)
    columns = []
    for paths in cells.values():
        own = [_read(path / "trained.json") for path in paths if (path / "trained.json").is_file()]
        seconds, epochs = (
            [record[name] for record in own if name in record] for name in ("seconds", "epochs")
        )
        parameters = [record["parameters"] for record in own if "parameters" in record]
        parameters = parameters or [count_parameters(path / "model.pt") for path in paths[:1]]
        columns.append(
            (
                _mean(np.divide(seconds, 60), 1),
                _mean(epochs, 0),
                _mean(np.divide(parameters, 1e6), 2),
            )
        )
    return ["with the translator"] * 2 + [" / ".join(c[2] for c in columns)] if row_of(folder.name).segments else [
        " / ".join(column) for column in zip(*columns, strict=True)
    ]  # fmt: skip


def _mean(values: Any, digits: int) -> str:
    return f"{np.mean(values):,.{digits}f}" if len(values) else "n/a"


def _read(path: Path) -> Record:
    content: Record = json.loads(path.read_text(encoding="utf-8"))
    return content
