# SPDX-License-Identifier: Apache-2.0
"""What is around a request: the folder of its files, and a signal that ends the server in the middle of it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

_folder = tempfile.TemporaryDirectory(prefix="contourdiff_label_")
UPLOADS = os.path.realpath(_folder.name)
"""Folder of this server alone, for uploads and results; MONAI Label asks ``tempfile`` for their names."""
tempfile.tempdir = UPLOADS


class Interrupted(BaseException):
    """A signal ended the request."""


class Signals:
    """End a request at SIGINT or SIGTERM.

    MONAI Label translates in the thread of the server, which would only look at a signal after the translation.
    """

    def __init__(self) -> None:
        self._in_request = False
        self._received = False

    def listen(self) -> None:
        """Take over from the server's handlers, which are called first."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.getsignal(number)
            if callable(previous):
                signal.signal(number, partial(self._receive, previous))

    def _receive(
        self, previous: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None
    ) -> None:
        previous(number, frame)
        if self._received:
            return
        self._received = True
        if self._in_request:
            raise Interrupted
        remove_uploads()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Raise [`Interrupted`][] in the body at a signal; files of the server are removed then."""
        self._in_request = threading.current_thread() is threading.main_thread()
        try:
            yield
        except Interrupted:
            remove_uploads()
            raise
        finally:
            self._in_request = False


def remove_uploads() -> None:
    """Remove the folder with all files of requests; the server ends with the signal, without Python's clean-up."""
    shutil.rmtree(UPLOADS, ignore_errors=True)


def is_inside(path: str, folder: str) -> bool:
    """Whether a path, links resolved, is in a folder."""
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath([path, folder]) == folder and path != folder
