# SPDX-License-Identifier: Apache-2.0
"""Curves of a training, drawn from its TensorBoard event files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from contourdiff.data.atomic import save_figure
from contourdiff.extras import import_extra


def loss_curve(log_dir: str | Path, path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Draw the training loss (each step lightly, a running mean on top) and the validation loss into a PNG.

    MONAI logs validations by epoch, in an event file of their own: each is drawn at the last training step before it.
    ``log_dir`` is the ``output_dir`` of the training. Returns the scalars of training and validation, see
    [`read_scalars`][], also for errors. Raises ``ValueError`` without a training loss.
    """
    train = read_scalars(Path(log_dir), "train_loss")
    val = read_scalars(Path(log_dir), "val_loss")
    if not len(train):
        raise ValueError(
            f"expected the tag train_loss in the event files of {log_dir}, found none; pass the output_dir"
        )
    window = max(len(train) // 50, 1)
    _, seen, loss = train.T
    weights = np.full(window, 1 / window)
    smooth_seen = np.convolve(seen, weights, "valid")
    smooth_loss = np.convolve(loss, weights, "valid")
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.plot(seen, loss, color="tab:blue", alpha=0.25, linewidth=0.7)
    label = f"training, mean of {window} steps"
    axes.plot(smooth_seen, smooth_loss, color="tab:blue", label=label)
    if len(val):
        in_time = np.argsort(train[:, 0])
        times, steps, _ = train[in_time].T
        val_times, _, val_loss = val.T
        before = np.searchsorted(times, val_times, side="right") - 1
        before = np.maximum(before, 0)
        val_seen = steps[before]
        axes.plot(val_seen, val_loss, color="tab:orange", marker=".", label="validation")
    axes.set_xlabel("steps")
    axes.set_ylabel("loss")
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    save_figure(figure, path, dpi=120)
    return train, val


def read_scalars(log_dir: Path, tag: str) -> np.ndarray:
    """``(N, 3)`` float64: wall time (s), step, value; ascending steps, the latest of each.

    Raises ``ImportError`` without TensorBoard, ``FileNotFoundError`` without events.
    """
    events_module = "tensorboard.backend.event_processing.event_accumulator"
    tensorboard = import_extra(events_module, "loss curves are read with TensorBoard", "train")
    files = sorted(log_dir.glob("events.out.tfevents.*"))
    if not files:
        raise FileNotFoundError(
            f"expected TensorBoard event files in {log_dir}, found none; pass the output_dir"
        )
    events = []
    for file in files:
        accumulator = tensorboard.EventAccumulator(str(file), size_guidance={"scalars": 0})
        accumulator.Reload()
        if tag in accumulator.Tags()["scalars"]:
            events += accumulator.Scalars(tag)
    events.sort(key=lambda event: event.wall_time)
    latest = {event.step: event for event in events}
    rows = []
    for step, event in sorted(latest.items()):
        row = (event.wall_time, step, event.value)
        rows.append(row)
    return np.array(rows).reshape(-1, 3)
