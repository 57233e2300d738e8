# SPDX-License-Identifier: Apache-2.0
"""Curves of a training, drawn from its TensorBoard event files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from contourdiff.data.atomic import save_figure


def loss_curve(
    log_dir: str | Path,
    path: str | Path,
    *,
    images_per_step: int = 1,
    smooth_steps: int | None = None,
    train_tag: str = "train_loss",
    val_tag: str = "val_loss",
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the training loss (each step lightly, a running mean on top) and the validation loss into a PNG.

    MONAI logs validations by epoch, in an event file of their own: each is drawn at the last training step before it.
    Where event files of a resumed training hold the same step, the later value counts.

    Args:
        log_dir: the folder with the event files, ``output_dir`` of the training config.
        path: PNG file to write, whole or not at all.
        images_per_step: the batch size, to draw the loss against images seen; 1 draws it against steps.
        smooth_steps: steps in the running mean; ``None`` takes a fiftieth of all.
        train_tag: tag of the training loss.
        val_tag: tag of the validation loss; the curve is left out where there is none yet.

    Returns the scalars of training and validation, see [`read_scalars`][]. Raises ``ImportError`` without TensorBoard,
    ``FileNotFoundError`` without events, ``ValueError`` without a loss.
    """
    train, val = (read_scalars(Path(log_dir), tag) for tag in (train_tag, val_tag))
    if not len(train):
        raise ValueError(
            f"expected the tag {train_tag!r} in the event files of {log_dir}, found none; pass train_tag"
        )
    window = min(max(smooth_steps or len(train) // 50, 1), len(train))
    seen, loss = train[:, 1] * images_per_step, train[:, 2]
    smooth = [np.convolve(values, np.full(window, 1 / window), "valid") for values in (seen, loss)]
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.plot(seen, loss, color="tab:blue", alpha=0.25, linewidth=0.7)
    axes.plot(*smooth, color="tab:blue", label=f"training, mean of {window} steps")
    if len(val):
        by_time = train[np.argsort(train[:, 0])]
        before = np.searchsorted(by_time[:, 0], val[:, 0], side="right") - 1
        val_seen = by_time[np.maximum(before, 0), 1] * images_per_step
        axes.plot(val_seen, val[:, 2], color="tab:orange", marker=".", label="validation")
    axes.set(xlabel="images seen" if images_per_step > 1 else "steps", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    save_figure(figure, path, dpi=120)
    return train, val


def read_scalars(log_dir: Path, tag: str) -> np.ndarray:
    """``(N, 3)`` float64: wall time (s), step, value; ascending steps, the latest of each. Errors as above."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ImportError(
            "loss curves are read with TensorBoard; pip install 'contourdiff[train]'"
        ) from error
    files = sorted(log_dir.glob("events.out.tfevents.*"))
    if not files:
        raise FileNotFoundError(
            f"expected TensorBoard event files in {log_dir}, found none; pass the output_dir"
        )
    accumulators = [
        EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload() for file in files
    ]
    events = [
        event
        for each in accumulators
        if tag in each.Tags()["scalars"]
        for event in each.Scalars(tag)
    ]
    latest = {event.step: event for event in sorted(events, key=lambda event: event.wall_time)}
    return np.array(
        [(event.wall_time, step, event.value) for step, event in sorted(latest.items())]
    ).reshape(-1, 3)
