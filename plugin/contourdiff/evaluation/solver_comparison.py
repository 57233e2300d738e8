# SPDX-License-Identifier: Apache-2.0
"""How many steps does a translation need? Solvers compared on the same held-out slices, from the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.metrics import SSIMMetric

from contourdiff.data.atomic import atomic_write, write_csv, write_text
from contourdiff.evaluation.held_out import HeldOut, held_out_agreement, held_out_slices
from contourdiff.sampling.solvers import ddim, dpm_solver
from contourdiff.weights import sha256_of

SOLVES = {"ddim": ddim, "dpm_solver": dpm_solver}
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
    **overrides: Any,
) -> str:
    """Translate held-out slices with each solver, and compare with the slices and with a reference solution.

    Args:
        train_config: the training config, or it and its overlays.
        weights: state dict to evaluate.
        output_dir: folder for ``steps.csv`` (a line a solver, seed and slice), ``steps.md`` and ``steps.png``.
        solvers: ``name:steps``, such as ``"dpm_solver:20"``.
        reference: taken for the exact solution; it is solved for the first seed alone.
        seeds: of the noise; their spread says how large a difference is worth a word.
        max_slices: translate this many slices, evenly spread; ``None`` takes all.
        overrides: entries of the config to replace.

    Returns:
        The table of ``steps.md``: for each solver the contour agreement F1 and the SSIM with the real slice, mean over
        slices and seeds ± standard deviation of the seeds' means, and the SSIM with the reference's translation from
        the same noise.

    Raises:
        ValueError: for an unknown solver, or what the training config does not have.
    """
    settings = {name: _solver(name) for name in (*solvers, reference)}
    held_out = held_out_slices(train_config, weights, max_slices, overrides)
    exact = _translations(held_out, *settings[reference], seeds[0])[1]
    rows: list[Row] = []
    pictures: dict[str, dict[int, np.ndarray]] = {reference: exact}
    for name in solvers:
        for seed in seeds:
            found, images = _translations(held_out, *settings[name], seed)
            for row, (case, position) in zip(found, held_out.places, strict=True):
                told = {"solver": name, "seed": seed, "case": case, "slice": position}
                told |= {measure: row[measure] for measure in MEASURES[:2]}
                if seed == seeds[0]:
                    told["reference_ssim"] = _ssim(images[row["index"]], exact[row["index"]])
                    pictures.setdefault(name, images)
                rows.append(told)
    table = _table(rows, solvers, seeds)
    write_csv(Path(output_dir) / "steps.csv", rows, ["solver", "seed", "case", "slice", *MEASURES])
    lines = [
        table,
        f"- reference: {reference}, seed {seeds[0]}",
        f"- slices: {len(held_out.places)}, seeds: {list(seeds)}",
    ]
    lines.append(f"- weights (SHA-256): {sha256_of(weights)}")
    write_text(Path(output_dir) / "steps.md", "\n".join(lines) + "\n")
    _picture(pictures, held_out, Path(output_dir) / "steps.png")
    return table


def _solver(name: str) -> tuple[str, int]:
    solver, _, steps = name.partition(":")
    if solver not in SOLVES or not steps.isdigit() or int(steps) < 1:
        raise ValueError(f"expected a solver of {list(SOLVES)} and its steps, such as dpm_solver:20; got {name!r}")
    return solver, int(steps)


def _translations(held_out: HeldOut, solver: str, steps: int, seed: int) -> tuple[list[Row], dict[int, np.ndarray]]:
    images: dict[int, np.ndarray] = {}
    rows = held_out_agreement(
        **held_out.arguments,
        num_inference_steps=steps,
        seed=seed,
        solve=SOLVES[solver],
        on_translation=images.__setitem__,
    )
    return rows, images


def _ssim(image: np.ndarray, other: np.ndarray) -> float:
    metric = SSIMMetric(spatial_dims=2, data_range=255.0, reduction="none")
    found: Any = metric(torch.as_tensor(image)[None, None], torch.as_tensor(other)[None, None])
    return float(found)


def _table(rows: Sequence[Mapping[str, Any]], solvers: Sequence[str], seeds: Sequence[int]) -> str:
    lines = ["| solver | network calls | F1 | SSIM | SSIM with the reference |", "|---|---|---|---|---|"]
    for name in solvers:
        mine = [row for row in rows if row["solver"] == name]
        cells = []
        for measure in MEASURES[:2]:
            means = [np.mean([row[measure] for row in mine if row["seed"] == seed]) for seed in seeds]
            spread = f" ± {np.std(means, ddof=1):.4f}" if len(means) > 1 else ""
            cells.append(f"{np.mean(means):.4f}{spread}")
        cells.append(f"{np.mean([row['reference_ssim'] for row in mine if 'reference_ssim' in row]):.3f}")
        lines.append(f"| {name.partition(':')[0]} | {name.partition(':')[2]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _picture(pictures: Mapping[str, dict[int, np.ndarray]], held_out: HeldOut, path: Path) -> None:
    """The first, a middle and the last slice: real, and by each solver."""
    count = len(held_out.places)
    shown = sorted({0, count // 2, count - 1})
    dataset = held_out.arguments["dataset"]
    figure = Figure(figsize=(2.2 * (len(pictures) + 1), 2.4 * len(shown)))
    axes = figure.subplots(len(shown), len(pictures) + 1, squeeze=False)
    for row, position in enumerate(shown):
        real = (np.asarray(dataset[position]["image"])[0] + 1) * 127.5
        columns = {"real MR": real, **{name: images[position] for name, images in pictures.items()}}
        for axis, (name, image) in zip(axes[row], columns.items(), strict=True):
            axis.imshow(image.T, cmap="gray", origin="lower", vmin=0, vmax=255)
            axis.invert_xaxis()
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name, fontsize=8, loc="left")
    figure.tight_layout(pad=0.3)
    with atomic_write(path) as aside:
        figure.savefig(aside, dpi=80, format="png")
