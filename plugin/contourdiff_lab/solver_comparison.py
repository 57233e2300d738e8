# SPDX-License-Identifier: Apache-2.0
"""How many steps does a translation need? Solvers compared on the same held-out slices, from the same noise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from contourdiff.data.atomic import save_figure, write_csv, write_text
from contourdiff.pictures import show_slice
from contourdiff.sampling.sampler import SOLVERS
from contourdiff.weights import sha256_of
from contourdiff_lab.held_out import HeldOut, gray_levels, held_out_agreement, held_out_slices, ssim

MEASURES = ("own_f1", "own_ssim", "reference_ssim")


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
    of the seeds' means, and the SSIM with the translation by ``reference`` from the same noise: it stands for the exact
    solution and is solved for the first seed alone. Solvers are ``name:steps``, such as ``"dpm_solver:20"``; ``seeds``
    are those of the noise. ``steps.csv`` has a line a solver, seed and slice, ``steps.png`` shows three slices. Other
    arguments are those of [`contourdiff_lab.held_out.evaluate_bundle`][].

    Raises ``ValueError`` for an unknown solver, or a setting that the config does not have.
    """
    steps = {name: _parse_solver(name) for name in (*solvers, reference)}
    held_out = held_out_slices(train_config, weights, max_slices, settings, inference, translation)
    exact = replace(held_out, seed=seeds[0]).translations(*steps[reference])
    rows: list[dict[str, Any]] = []
    pictures = {reference: exact}
    for name, seed in itertools.product(solvers, seeds):
        images = replace(held_out, seed=seed).translations(*steps[name])
        agreement = held_out_agreement(held_out, images)
        for row, (case, position), image, best in zip(
            agreement, held_out.places, images, exact, strict=True
        ):
            entry = {"solver": name, "seed": seed, "case": case, "slice": position}
            entry |= {measure: row[measure] for measure in MEASURES[:2]}
            rows.append(entry | ({"reference_ssim": ssim(image, best)} if seed == seeds[0] else {}))
        pictures.setdefault(name, images)
    table = _table(rows, solvers, seeds)
    write_csv(Path(output_dir) / "steps.csv", rows, ["solver", "seed", "case", "slice", *MEASURES])
    basis = f"- reference: {reference}, seed {seeds[0]}\n- slices: {len(held_out.places)}, seeds: {list(seeds)}\n"
    write_text(
        Path(output_dir) / "steps.md",
        f"{table}\n{basis}- weights (SHA-256): {sha256_of(weights)}\n",
    )
    _draw(pictures, held_out, Path(output_dir) / "steps.png")
    return table


def _parse_solver(name: str) -> tuple[str, int]:
    solver, _, steps = name.partition(":")
    if solver not in SOLVERS or solver == "ddpm" or not steps.isdigit() or int(steps) < 1:
        known = [each for each in SOLVERS if each != "ddpm"]
        raise ValueError(
            f"expected a solver of {known} and its steps, such as dpm_solver:20; got {name!r}"
        )
    return solver, int(steps)


def _table(rows: Sequence[Mapping[str, Any]], solvers: Sequence[str], seeds: Sequence[int]) -> str:
    lines = [
        "| solver | network calls | F1 | SSIM | SSIM with the reference |",
        "|---|---|---|---|---|",
    ]
    for name in solvers:
        members = [row for row in rows if row["solver"] == name]
        cells = []
        for measure in MEASURES[:2]:
            means = [
                np.mean([row[measure] for row in members if row["seed"] == seed]) for seed in seeds
            ]
            spread = f" ± {np.std(means, ddof=1):.4f}" if len(means) > 1 else ""
            cells.append(f"{np.mean(means):.4f}{spread}")
        cells.append(
            f"{np.mean([row['reference_ssim'] for row in members if 'reference_ssim' in row]):.3f}"
        )
        lines.append(f"| {' | '.join([*name.split(':'), *cells])} |")
    return "\n".join(lines) + "\n"


def _draw(pictures: Mapping[str, Sequence[np.ndarray]], held_out: HeldOut, path: Path) -> None:
    """The first, a middle and the last slice: real, and by each solver."""
    shown = sorted({0, len(held_out.places) // 2, len(held_out.places) - 1})
    figure = Figure(figsize=(2.2 * (len(pictures) + 1), 2.4 * len(shown)))
    axes = figure.subplots(len(shown), len(pictures) + 1, squeeze=False)
    for row, position in enumerate(shown):
        columns = {"real MR": gray_levels(held_out.dataset[position]["image"])}
        columns |= {name: images[position] for name, images in pictures.items()}
        for axis, (name, image) in zip(axes[row], columns.items(), strict=True):
            show_slice(axis, image, name if row == 0 else "")
            axis.invert_xaxis()
    figure.tight_layout(pad=0.3)
    save_figure(figure, path, dpi=80)
