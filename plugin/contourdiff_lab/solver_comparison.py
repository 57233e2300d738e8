# SPDX-License-Identifier: Apache-2.0
"""How many steps does a translation need? Solvers compared on the same held-out slices, from the same noise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from contourdiff.data.atomic import save_figure, write_csv, write_text
from contourdiff.pictures import image_grid
from contourdiff.sampling.sampler import SOLVERS
from contourdiff.tables import markdown_table
from contourdiff.weights import sha256_of
from contourdiff_lab.held_out import (
    HeldOut,
    gray_levels,
    held_out_agreement,
    held_out_slices,
    ssim,
    texture_db,
)

Rows = Sequence[Mapping[str, Any]]
COLUMNS = ("solver", "seed", "case", "slice", "own_f1", "own_ssim", "texture_db", "reference_ssim")
HEADER = ("solver", "evaluations", "F1", "SSIM", "texture, dB", "SSIM with the reference")


def compare_solvers(
    train_config: str | Sequence[str],
    weights: str,
    output_dir: str | Path,
    *,
    solvers: Sequence[str],
    reference: str = "ddim:200",
    seeds: Sequence[int] = (0, 1, 2),
    max_slices: int | None = None,
    inference: Sequence[str] | None = None,
    translation: Mapping[str, Any] | None = None,
    **settings: Any,
) -> str:
    """Translate held-out slices with each solver, compare with the slices and with a reference, return the table.

    The table of ``steps.md`` lists contour agreement F1 and SSIM with the real slice, mean over slices and seeds ± SD
    of the seeds' means; texture, the power above 0.2 cycles a pixel less that of the real slice, in decibel; and the
    SSIM with the translation by ``reference`` from the same noise: it stands for the exact solution and is solved for
    the first seed alone. Solvers are ``name:steps``, such as ``"dpm_solver:20"``, or ``name:steps+steps`` for both
    networks of a cascade; ``seeds`` are those of the noise. ``steps.csv`` has a line a solver, seed and slice,
    ``steps.png`` shows three slices. Other arguments are those of [`contourdiff_lab.held_out.evaluate_bundle`][].

    Raises ``ValueError`` for an unknown solver, or a setting that the config does not have.
    """
    steps = {name: _parse_solver(name) for name in (*solvers, reference)}
    held_out = held_out_slices(train_config, weights, max_slices, settings, inference, translation)
    first_seed = seeds[0]
    exact = replace(held_out, seed=first_seed).translations(*steps[reference])
    pictures = {reference: exact}
    real_texture = [texture_db(gray_levels(item["image"])) for item in held_out.dataset]
    rows: list[dict[str, Any]] = []
    for name, seed in itertools.product(solvers, seeds):
        images = replace(held_out, seed=seed).translations(*steps[name])
        pictures.setdefault(name, images)
        agreement = held_out_agreement(held_out, images)
        for index, (case, position) in enumerate(held_out.places):
            row = {
                "solver": name,
                "seed": seed,
                "case": case,
                "slice": position,
                "own_f1": agreement[index]["own_f1"],
                "own_ssim": agreement[index]["own_ssim"],
                "texture_db": texture_db(images[index]) - real_texture[index],
            }
            if seed == first_seed:
                row["reference_ssim"] = ssim(images[index], exact[index])
            rows.append(row)
    table = _table(rows, solvers, seeds)
    write_csv(Path(output_dir) / "steps.csv", rows, COLUMNS)
    write_text(
        Path(output_dir) / "steps.md",
        f"{table}\n"
        f"- reference: {reference}, seed {first_seed}\n"
        f"- slices: {len(held_out.places)}, seeds: {list(seeds)}\n"
        f"- weights (SHA-256): {sha256_of(weights)}\n",
    )
    _draw(pictures, held_out, Path(output_dir) / "steps.png")
    return table


def _parse_solver(name: str) -> tuple[str, int, int | None]:
    """Solver, steps of the first network, and of the second where they are given."""
    solver, _, counts = name.partition(":")
    deterministic = [solver for solver in SOLVERS if solver != "ddpm"]
    steps = counts.split("+")
    are_steps = all(count.isdigit() and int(count) > 0 for count in steps)
    if solver not in deterministic or len(steps) > 2 or not are_steps:
        raise ValueError(
            f"expected a solver of {deterministic} and its steps, such as dpm_solver:20 or ddim:4+2; got {name!r}"
        )
    second = int(steps[1]) if len(steps) == 2 else None
    return solver, int(steps[0]), second


def _table(rows: Rows, solvers: Sequence[str], seeds: Sequence[int]) -> str:
    cells = []
    for name in solvers:
        of_solver = [row for row in rows if row["solver"] == name]
        solver, steps = name.split(":")
        f1 = _mean_over_seeds(of_solver, "own_f1", seeds)
        own_ssim = _mean_over_seeds(of_solver, "own_ssim", seeds)
        texture = _mean_over_seeds(of_solver, "texture_db", seeds, digits=1)
        similarities = [row["reference_ssim"] for row in of_solver if "reference_ssim" in row]
        cells.append([solver, steps, f1, own_ssim, texture, f"{np.mean(similarities):.3f}"])
    return markdown_table(HEADER, cells) + "\n"


def _mean_over_seeds(rows: Rows, measure: str, seeds: Sequence[int], digits: int = 4) -> str:
    """Mean of the means of each seed, and their standard deviation."""
    means = []
    for seed in seeds:
        values = [row[measure] for row in rows if row["seed"] == seed]
        means.append(np.mean(values))
    text = f"{np.mean(means):.{digits}f}"
    if len(means) > 1:
        text += f" ± {np.std(means, ddof=1):.{digits}f}"
    return text


def _draw(pictures: Mapping[str, Sequence[np.ndarray]], held_out: HeldOut, path: Path) -> None:
    """The first, a middle and the last slice: real, and by each solver."""
    count = len(held_out.places)
    rows = []
    for position in sorted({0, count // 2, count - 1}):
        real = gray_levels(held_out.dataset[position]["image"])
        translated = [images[position] for images in pictures.values()]
        rows.append([real, *translated])
    titles = ["real MR", *pictures]
    figure = image_grid(rows, [titles], cell_inches=(2.2, 2.4))
    for axis in figure.axes:
        axis.invert_xaxis()
    save_figure(figure, path, dpi=80)
