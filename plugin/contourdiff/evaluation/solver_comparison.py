# SPDX-License-Identifier: Apache-2.0
"""How many steps does a translation need? Solvers compared on the same held-out slices, from the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from contourdiff.data.atomic import save_figure, write_csv, write_text
from contourdiff.evaluation.held_out import HeldOut, gray_levels, held_out_agreement, held_out_slices, ssim
from contourdiff.sampling.sampler import SOLVERS
from contourdiff.weights import sha256_of

MEASURES = ("own_f1", "own_ssim", "reference_ssim")

Row = dict[str, Any]


def compare_solvers(
    train_config: str | Sequence[str],
    weights: str,
    output_dir: str | Path,
    *,
    solvers: Sequence[str],
    reference: str = "ddim:200",
    seeds: Sequence[int] = (0, 1, 2),
    max_slices: int | None = None,
    **settings: Any,
) -> str:
    """Translate held-out slices with each solver, and compare with the slices and with a reference solution.

    Args:
        train_config: the training config, or it and its overlays.
        weights: state dict to evaluate.
        output_dir: folder for ``steps.csv`` (a line a solver, seed and slice), ``steps.md`` and ``steps.png``.
        solvers: ``name:steps``, such as ``"dpm_solver:20"``.
        reference: stands for the exact solution; it is solved for the first seed alone.
        seeds: of the noise; their spread shows which differences are real.
        max_slices: translate this many slices, evenly spread; ``None`` takes all.
        settings: settings of the config.

    Returns:
        The table of ``steps.md``: for each solver the contour agreement F1 and the SSIM with the real slice, mean over
        slices and seeds ± standard deviation of the seeds' means, and the SSIM with the reference's translation from
        the same noise.

    Raises:
        ValueError: for an unknown solver, or a setting that the config does not have.
    """
    steps = {name: _parse_solver(name) for name in (*solvers, reference)}
    held_out = held_out_slices(train_config, weights, max_slices, settings)
    exact = replace(held_out, seed=seeds[0]).translations(*steps[reference])
    rows: list[Row] = []
    pictures = {reference: exact}
    for name in solvers:
        for seed in seeds:
            images = replace(held_out, seed=seed).translations(*steps[name])
            agreement = held_out_agreement(held_out, images)
            for row, (case, position), image, best in zip(agreement, held_out.places, images, exact, strict=True):
                entry = {"solver": name, "seed": seed, "case": case, "slice": position}
                entry |= {measure: row[measure] for measure in MEASURES[:2]}
                rows.append(entry | ({"reference_ssim": ssim(image, best)} if seed == seeds[0] else {}))
            pictures.setdefault(name, images)
    table = _table(rows, solvers, seeds)
    write_csv(Path(output_dir) / "steps.csv", rows, ["solver", "seed", "case", "slice", *MEASURES])
    basis = f"- reference: {reference}, seed {seeds[0]}\n- slices: {len(held_out.places)}, seeds: {list(seeds)}\n"
    write_text(Path(output_dir) / "steps.md", f"{table}\n{basis}- weights (SHA-256): {sha256_of(weights)}\n")
    _draw(pictures, held_out, Path(output_dir) / "steps.png")
    return table


def _parse_solver(name: str) -> tuple[str, int]:
    solver, _, steps = name.partition(":")
    if solver not in SOLVERS or solver == "ddpm" or not steps.isdigit() or int(steps) < 1:
        expected = [known for known in SOLVERS if known != "ddpm"]
        raise ValueError(f"expected a solver of {expected} and its steps, such as dpm_solver:20; got {name!r}")
    return solver, int(steps)


def _table(rows: Sequence[Mapping[str, Any]], solvers: Sequence[str], seeds: Sequence[int]) -> str:
    lines = ["| solver | network calls | F1 | SSIM | SSIM with the reference |", "|---|---|---|---|---|"]
    for name in solvers:
        members = [row for row in rows if row["solver"] == name]
        cells = []
        for measure in MEASURES[:2]:
            means = [np.mean([row[measure] for row in members if row["seed"] == seed]) for seed in seeds]
            spread = f" ± {np.std(means, ddof=1):.4f}" if len(means) > 1 else ""
            cells.append(f"{np.mean(means):.4f}{spread}")
        cells.append(f"{np.mean([row['reference_ssim'] for row in members if 'reference_ssim' in row]):.3f}")
        lines.append(f"| {name.partition(':')[0]} | {name.partition(':')[2]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _draw(pictures: Mapping[str, Sequence[np.ndarray]], held_out: HeldOut, path: Path) -> None:
    """The first, a middle and the last slice: real, and by each solver."""
    count = len(held_out.places)
    shown = sorted({0, count // 2, count - 1})
    figure = Figure(figsize=(2.2 * (len(pictures) + 1), 2.4 * len(shown)))
    axes = figure.subplots(len(shown), len(pictures) + 1, squeeze=False)
    for row, position in enumerate(shown):
        real = gray_levels(held_out.dataset[position]["image"])
        columns = {"real MR": real, **{name: images[position] for name, images in pictures.items()}}
        for axis, (name, image) in zip(axes[row], columns.items(), strict=True):
            axis.imshow(image.T, cmap="gray", origin="lower", vmin=0, vmax=255)
            axis.invert_xaxis()
            axis.set_axis_off()
            axis.set_title(name if row == 0 else "", fontsize=8, loc="left")
    figure.tight_layout(pad=0.3)
    save_figure(figure, path, dpi=80)
