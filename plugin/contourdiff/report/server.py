# SPDX-License-Identifier: Apache-2.0
"""A server of one folder for the browser of this machine."""

from __future__ import annotations

import logging
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from contourdiff.limits import SettingError

logger = logging.getLogger(__name__)
HOST = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    """Files of a folder, for requests that name this machine: no page of another site reads them."""

    def send_head(self) -> Any:
        """Refuse what comes by another name."""
        host, _, _ = self.headers.get("Host", "").partition(":")
        if host not in (HOST, "localhost"):
            self.send_error(403, "this server answers to 127.0.0.1 and localhost")
            return None
        return super().send_head()

    def end_headers(self) -> None:
        """Let the browser ask again after the report was written anew."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log requests as details."""
        logger.debug(format, *args)


def server_of(folder: str | Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of a folder at 127.0.0.1, not yet running; port 0 takes any free one.

    Raises ``OSError`` if the port is taken, ``ValueError`` if it is not a port number.
    """
    if not 0 <= port <= 65535:
        raise SettingError(f"expected a port from 0 to 65535, got {port}; pass another")
    directory = str(Path(folder).resolve())
    handler = partial(_Handler, directory=directory)
    return ThreadingHTTPServer((HOST, port), handler)


def serve(folder: str | Path, port: int = 8010) -> None:
    """Serve a folder at 127.0.0.1 until the program is interrupted; errors as [`server_of`][]."""
    with server_of(folder, port) as server:
        logger.info("http://%s:%d/index.html (Ctrl-C ends)", HOST, server.server_address[1])
        server.serve_forever()
