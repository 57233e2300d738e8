# SPDX-License-Identifier: Apache-2.0
"""What each row of the experiment costs: data, time, parameters, network evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from contourdiff.bundle import find_bundle
from contourdiff.data.atomic import read_json, write_text
from contourdiff.tables import markdown_table
from contourdiff.weights import read_weights, sha256_of
from contourdiff_lab.experiment.plan import Cell
from contourdiff_lab.experiment.rows import row_of

HEADER = (
    "row",
    "learns from",
    "translator: minutes",
    "budget",
    "parameters, M",
    "evaluations a slice",
    "segmentation: minutes a network",
    "steps",
    "parameters, M",
)
NOTE = """\
Every segmentation network has the same architecture, grid, augmentation, number of optimizer steps and batch size, and
its last weights are tested; what differs is listed below. Minutes of the translator and of a segmentation network (of
all folds together for `upper_bound`) on this computer, mean over seeds, `/` between networks. Evaluations: of a network
for each translated slice, all candidates and steps. What a row learns from is without the CT with labels that its
segmentation network needs. The shipped translator's figures are those of its model card, on another computer, without
the weights that it started from.
"""
UNKNOWN = "n/a"
GENERATOR_STAGE = "pixel"
"""Stage of CyCADA in which the generators learn, and its segmentation network does not."""
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


def cost_table(folder: Path, rows: Sequence[str], bundle: str | Path | None = None) -> str:
    """Markdown table on the rows of an experiment's folder, and a note on it."""
    lines = []
    for row in rows:
        translator = _translator_costs(folder, row, bundle)
        lines.append(
            [row, row_of(row).learns_from, *translator, *_segmentation_costs(folder / row)]
        )
    differences = [f"- `{row}`: {row_of(row).differs}." for row in rows if row_of(row).differs]
    return "\n".join([markdown_table(HEADER, lines), "", NOTE, *differences, ""])


def _translator_costs(folder: Path, row: str, bundle: str | Path | None) -> list[str]:
    """Minutes, budget, parameters and evaluations a slice."""
    trainings = [read_json(path) for path in sorted((folder / row).glob("weights*/trained.json"))]
    translations = [read_json(path) for path in (folder / row).glob("translations_*/*_mr.json")]
    if not trainings and not translations:
        return ["-"] * 4
    if not trainings:
        trainings = [_shipped_training(folder, bundle)]
    return [
        _mean([seconds / 60 for seconds in _recorded("seconds", trainings)], 1),
        _budget(trainings[0]),
        _mean([count / 1e6 for count in _recorded("parameters", trainings)], 2),
        _mean([_evaluations(row, record) for record in translations], 0),
    ]


def _shipped_training(folder: Path, bundle: str | Path | None) -> Record:
    """The training of the bundle's translator, if it is the one that the plan names; nothing is known about another."""
    root = find_bundle(bundle)
    weights = [root / "models" / name for name in ("model.pt", "refiner.pt")]
    digests = [sha256_of(path) for path in weights]
    if read_json(folder / "plan.json").get("weights") not in digests:
        return {}
    training: Record = read_json(root / "configs" / "metadata.json").get("training", {})
    return {**training, "parameters": sum(count_parameters(path) for path in weights)}


def _budget(training: Record) -> str:
    """Limit of a training, and the images that it has seen."""
    minutes = {**training, **training.get("settings", {})}.get("minutes")
    parts = []
    if minutes:
        parts.append(f"{minutes:g} min")
    for name in ("steps", "iterations", "images"):
        if name in training:
            parts.append(f"{training[name]:,} {name}")
    return ", ".join(parts) or UNKNOWN


def _evaluations(row: str, record: Record) -> float:
    """Evaluations a translated slice: one of a generator; of a diffusion model rounds x candidates x steps."""
    settings = record["settings"]
    rounds = [entry["rounds"] for entry in record["slices"] if not entry["skipped"]]
    if row_of(row).baseline or not rounds:
        return 1.0
    steps = settings["num_inference_steps"]
    if "refiner" in record["weights"]:
        steps += settings["num_refinement_steps"]
    return float(np.mean(rounds) * settings["candidates"] * steps)


def _segmentation_costs(folder: Path) -> list[str]:
    """Minutes, steps and parameters of a row's segmentation networks, ``/`` between architectures, the UNet first."""
    by_architecture: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*_translation*_seed*")):
        by_architecture.setdefault(Cell.of_folder(path).architecture, []).append(path)
    minutes = []
    steps = []
    parameters = []
    for name in sorted(by_architecture, key=lambda name: (name != "unet", name)):
        cells = by_architecture[name]
        trainings = [path / "trained.json" for path in cells]
        records = [read_json(path) for path in trainings if path.is_file()]
        counts = _recorded("parameters", records) or [count_parameters(cells[0] / "model.pt")]
        minutes.append(_mean(np.divide(_recorded("seconds", records), 60), 1))
        steps.append(_mean(_recorded("steps", records), 0))
        parameters.append(_mean(np.divide(counts, 1e6), 2))
    if row_of(folder.name).segments:
        return ["with the translator", _own_steps(folder), " / ".join(parameters)]
    return [" / ".join(minutes), " / ".join(steps), " / ".join(parameters)]


def _own_steps(folder: Path) -> str:
    """Steps of the segmentation network that a baseline trains: of all its stages but that of the generators."""
    counts = []
    for path in folder.glob("weights*/trained.json"):
        record = read_json(path)
        stages = record.get("stages", {"all": record})
        of_network = [stage for name, stage in stages.items() if name != GENERATOR_STAGE]
        counts.append(sum(_recorded("iterations", of_network)))
    return _mean(counts, 0)


def _recorded(name: str, records: Iterable[Record]) -> list[float]:
    """Values of an entry, of the records that have it."""
    return [record[name] for record in records if name in record]


def _mean(values: Any, digits: int) -> str:
    return f"{np.mean(values):,.{digits}f}" if len(values) else UNKNOWN


def count_parameters(path: str | Path) -> int:
    """Number of values in a file of weights; errors are those of [`contourdiff.weights.read_weights`][]."""
    return sum(value.numel() for value in read_weights(path).values())
