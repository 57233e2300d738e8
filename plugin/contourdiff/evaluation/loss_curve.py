# SPDX-License-Identifier: Apache-2.0
"""Curves of a training, drawn from its TensorBoard event files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from contourdiff.data.atomic import atomic_write


def loss_curve(
    log_dir: str | Path,
    path: str | Path,
    *,
    images_per_step: int = 1,
    smooth_steps: int | None = None,
    train_tag: str = "train_loss",
    val_tag: str = "val_loss",
) -> None:
    """Draw the training loss (each step lightly, a running mean on top) and the validation loss into a PNG.

    MONAI logs the training loss by step and the validation loss by epoch, in two event files of one folder. A
    validation is drawn at the last training step that was logged before it. A resumed training adds event files;
    where two of them hold the same step, the later one counts.

    Args:
        log_dir: the folder with the event files, ``output_dir`` of the training config.
        path: PNG file to write, whole or not at all.
        images_per_step: the batch size, to draw the loss against images seen; 1 draws it against steps.
        smooth_steps: steps in the running mean; ``None`` takes a fiftieth of all.
        train_tag: tag of the training loss.
        val_tag: tag of the validation loss; the curve is left out where there is none yet.

    Raises:
        ImportError: if TensorBoard is not installed.
        FileNotFoundError: if there are no event files in ``log_dir``.
        ValueError: if no training loss was logged.
    """
    scalars = _read_scalars(Path(log_dir), (train_tag, val_tag))
    train, val = scalars[train_tag], scalars[val_tag]
    if not len(train):
        raise ValueError(f"expected the tag {train_tag!r} in the event files of {log_dir}, found none; pass train_tag")
    window = min(max(smooth_steps or len(train) // 50, 1), len(train))
    kernel = np.full(window, 1 / window)
    seen, loss = train[:, 1] * images_per_step, train[:, 2]
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.plot(seen, loss, color="tab:blue", alpha=0.25, linewidth=0.7)
    smooth_seen, smooth_loss = np.convolve(seen, kernel, "valid"), np.convolve(loss, kernel, "valid")
    axes.plot(smooth_seen, smooth_loss, color="tab:blue", label=f"training, mean of {window} steps")
    if len(val):
        by_time = train[np.argsort(train[:, 0])]
        before = np.searchsorted(by_time[:, 0], val[:, 0], side="right") - 1
        val_seen = by_time[np.maximum(before, 0), 1] * images_per_step
        axes.plot(val_seen, val[:, 2], color="tab:orange", marker=".", label="validation")
    axes.set(xlabel="images seen" if images_per_step > 1 else "steps", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    with atomic_write(path) as aside:
        figure.savefig(aside, dpi=120, format="png")


def _read_scalars(log_dir: Path, tags: tuple[str, ...]) -> dict[str, np.ndarray]:
    """For each tag ``(N, 3)`` float64: wall time (s), step, value; ascending steps, the latest of each."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ImportError("loss curves are read with TensorBoard; pip install 'contourdiff[train]'") from error
    files = sorted(log_dir.glob("events.out.tfevents.*"))
    if not files:
        raise FileNotFoundError(f"expected TensorBoard event files in {log_dir}, found none; pass the output_dir")
    latest: dict[str, dict[int, tuple[float, int, float]]] = {tag: {} for tag in tags}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in set(tags) & set(events.Tags()["scalars"]):
            for event in events.Scalars(tag):
                known = latest[tag].get(event.step)
                if known is None or known[0] <= event.wall_time:
                    latest[tag][event.step] = (event.wall_time, event.step, event.value)
    return {tag: np.array(sorted(found.values(), key=lambda e: e[1])).reshape(-1, 3) for tag, found in latest.items()}
