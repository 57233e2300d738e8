# SPDX-License-Identifier: Apache-2.0
"""A translation as a process: its command line, its progress, its results. Nothing here needs 3D Slicer."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

CONTRASTS = {"T1": "t1", "T2": "t2", "T2 SPACE": "t2_space", "T1 and T2": "t1,t2"}
SPEEDS = {
    "Automatic: full on a GPU, fast on a CPU": None,
    "Draft: a first look": "draft",
    "Fast": "fast",
    "Full: the setting of the paper": "full",
}
PROGRESS = re.compile(r"(\d+) of (\d+) slices,")
"""Of a line of progress: slices that are done, and all."""
INTERVAL_S = "1"
"""Time between two lines of progress."""
GRACE_S = 10.0
"""Time that a cancelled process has to end by itself."""
ERROR = "error: "
"""Begins the line with which the command ends if it fails."""


@dataclass(frozen=True)
class Request:
    """What is to be translated, and how.

    Args:
        ct: NIfTI file.
        output: folder of the results.
        contrast: one of the values of `CONTRASTS`.
        speed: one of the values of `SPEEDS`.
        seed: of the noise.
        label: NIfTI file on the grid of the CT, or ``None``.
        fidelity: write a map of where the MR follows its contour.
    """

    ct: Path
    output: Path
    contrast: str = "t1"
    speed: str | None = None
    seed: int = 0
    label: Path | None = None
    fidelity: bool = False

    def command(self, python: str) -> list[str]:
        """Command line for an interpreter that has contourdiff."""
        words = [python, "-m", "contourdiff", "translate", str(self.ct), str(self.output)]
        words += ["--contrast", self.contrast, "--seed", str(self.seed), "--json"]
        if self.speed is not None:
            words.append(f"--{self.speed}")
        if self.label is not None:
            words += ["--label", str(self.label)]
        if self.fidelity:
            words += ["--settings", "save_fidelity_map=true"]
        return words


class Result(NamedTuple):
    """Files of an MR, and what is to be known of it."""

    name: str
    """``T1`` or ``T2``."""
    mr: Path
    label: Path | None
    fidelity: Path | None
    warnings: tuple[str, ...]


class TranslationError(Exception):
    """A translation failed; the text says why."""


class CancelledError(TranslationError):
    """A translation was cancelled."""


def case_name(name: str) -> str:
    """Name of a volume as the name of a file, on which the noise depends.

    Examples:
        >>> case_name("3: CT/axial"), case_name("anna"), case_name("..")
        ('3_CT_axial', 'anna', 'ct')
    """
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._")
    return plain[:100] or "ct"


class Translation:
    """A process that translates; [`poll`][] is called until it has ended, then [`results`][].

    Args:
        command: result of [`Request.command`][].
        contrast: of the request.
        environment: variables of the process; ``None`` takes those of this one.

    Attributes:
        done: slices that are painted.
        total: all slices, 0 until they are known.
        lines: what the process logs, without its progress.
    """

    def __init__(
        self,
        command: Sequence[str],
        contrast: str = "t1",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.done = 0
        self.total = 0
        self.lines: list[str] = []
        self._contrast = contrast
        self._printed: list[str] = []
        self._unread: queue.Queue[tuple[list[str], str]] = queue.Queue()
        self._kill_at: float | None = None
        variables = {**(os.environ if environment is None else environment)}
        variables["TQDM_MININTERVAL"] = INTERVAL_S
        variables["PYTHONUTF8"] = "1"
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=variables,
            start_new_session=True,  # Slicer's Python is started by a launcher: a signal goes to both
        )
        streams = ((self._process.stdout, self._printed), (self._process.stderr, self.lines))
        self._readers = []
        for stream, lines in streams:
            reader = threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            reader.start()
            self._readers.append(reader)

    def poll(self) -> bool:
        """Take what the process has said since; whether it still runs."""
        status = self._process.poll()
        if status is not None:
            for reader in self._readers:
                reader.join(timeout=1)
        elif self._kill_at is not None and time.monotonic() > self._kill_at:
            self._signal(signal.SIGKILL)
        while not self._unread.empty():
            lines, line = self._unread.get()
            self._take(lines, line)
        return status is None

    def cancel(self) -> None:
        """Ask the process to end, which leaves no half-written file; it is killed ten seconds later if it has not."""
        if self._process.poll() is None and self._kill_at is None:
            self._kill_at = time.monotonic() + GRACE_S
            self._signal(signal.SIGTERM)

    def results(self) -> list[Result]:
        """What was translated, once the process has ended.

        Raises:
            TranslationError: if it failed.
            CancelledError: if it was cancelled.
        """
        if self._kill_at is not None:
            raise CancelledError("cancelled")
        try:
            answer = json.loads("\n".join(self._printed))
        except ValueError:
            answer = {"error": self._last_words()}
        entries = answer.get("results", [])
        failed = [entry["error"] for entry in entries if entry["status"] == "failed"]
        if failed or "error" in answer:
            raise TranslationError(failed[0] if failed else answer["error"])
        return [self._result(entry) for entry in entries]

    def _result(self, entry: Mapping) -> Result:
        mr = Path(entry["mr"])
        label = entry["label"]
        fidelity = mr.with_name(mr.name.replace("_mr.", "_fidelity."))
        return Result(
            (entry["contrast"] or self._contrast).upper().replace("_", " "),
            mr,
            None if label is None else Path(label),
            fidelity if fidelity.is_file() else None,
            tuple(entry["warnings"]),
        )

    def _last_words(self) -> str:
        """The reason of an end without results, from what was logged."""
        for line in reversed(self.lines):
            if line.startswith(ERROR):
                return line.removeprefix(ERROR)
        last = self.lines[-1] if self.lines else "nothing was logged"
        return f"the process ended with status {self._process.returncode}: {last}"

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            self._unread.put((lines, line.rstrip()))

    def _take(self, lines: list[str], line: str) -> None:
        counted = PROGRESS.search(line) if lines is self.lines else None
        if counted:
            self.done, self.total = int(counted[1]), int(counted[2])
        elif line:
            lines.append(line)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:  # it has just ended
            return
