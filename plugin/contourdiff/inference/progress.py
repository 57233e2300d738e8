# SPDX-License-Identifier: Apache-2.0
"""One line for all slices of a run, with the time left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

LINE_INTERVAL_S = 60.0
"""Time between two lines where standard error is no terminal, unless `INTERVAL` is set; every case begins with one."""
INTERVAL = "TQDM_MININTERVAL"
"""Variable of the environment: another time between two lines, in seconds."""
LINE = "{desc}{n_fmt} of {total_fmt} {unit}s, {elapsed} passed, {remaining} left, {rate_fmt}"


class RunProgress:
    """Progress of a run: the volume, its number, the translated slices of all volumes, and the time left.

    The total is that of all slices of all volumes. Those that need no work (no contour, or a failed case) are counted
    when their volume begins, or the next one. Use [`run_progress`][].
    """

    def __init__(self, slices: Mapping[str, int], bar: tqdm) -> None:
        self._bar = bar
        self._counts = list(slices.values())
        self._numbers = {name: number for number, name in enumerate(slices, start=1)}

    def begin(self, names: Sequence[str], slices: int) -> None:
        """Start volumes with ``slices`` to translate in all; those before them in the run are over."""
        numbers = [self._numbers.get(name, 0) for name in names]
        number = max(numbers, default=0)
        finished = sum(self._counts[:number]) - slices
        done = max(self._bar.n, finished)
        self._bar.n = done
        self._bar.total = max(self._bar.total, done + slices)
        listed = ", ".join(names)
        self._bar.set_description(f"{listed} ({number} of {len(self._numbers)})")

    def update(self) -> None:
        """Count a translated slice."""
        self._bar.update()


def progress_bar(total: int, unit: str, show: bool = True, **changes: Any) -> tqdm:
    """Bar of a run on a terminal, elsewhere a line a minute, see `INTERVAL`; ``changes`` are arguments of ``tqdm``."""
    options: dict[str, Any] = {
        "desc": "translate: ",
        "total": total,
        "unit": unit,
        "miniters": 1,
        "smoothing": 0,  # slices come in bursts
        "disable": not show,
    }
    if not sys.stderr.isatty():
        options["file"] = _Lines(sys.stderr)
        options["bar_format"] = LINE
        interval_s = float(os.environ.get(INTERVAL, LINE_INTERVAL_S))
        options["mininterval"] = options["maxinterval"] = interval_s
    return tqdm(**{**options, **changes})


@contextmanager
def run_progress(slices: Mapping[str, int], show: bool = True) -> Iterator[RunProgress]:
    """Show the progress of a run as a [`progress_bar`][].

    Args:
        slices: number of slices of each volume, by its name in the progress, in the order of the run.
        show: ``False`` counts in silence.
    """
    # without a bar, redirected lines of the log would be printed where nothing else prints, in workers
    lines = logging_redirect_tqdm() if show else nullcontext()
    total = sum(slices.values())
    has_bar = show and bool(slices)
    with lines, progress_bar(total, "slice", has_bar) as bar:
        yield RunProgress(slices, bar)
        bar.n = bar.total  # of the last case, if it failed


class _Lines:
    """Each state of a bar as a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            self._stream.write(f"{line}\n")
            self._stream.flush()
