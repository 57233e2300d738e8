# SPDX-License-Identifier: Apache-2.0
"""The server answers this machine alone, with files of its folder alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from contourdiff.report.server import serve, server_of


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "mr").mkdir()
    (tmp_path / "mr" / "index.html").write_text("report")
    (tmp_path / "secret").write_text("secret")
    with server_of(tmp_path / "mr") as server:
        assert server.server_address[0] == "127.0.0.1"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def answer(port: int, path: str, host: str | None = None) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_the_server_serves_its_folder_alone(port: int) -> None:
    assert answer(port, "/index.html") == (200, "report")
    for path in ("/../secret", "/%2e%2e/secret"):
        assert answer(port, path)[0] == 404


def test_a_page_of_another_site_reads_nothing_from_the_server(port: int) -> None:
    assert answer(port, "/index.html", f"localhost:{port}")[0] == 200
    assert answer(port, "/index.html", f"example.org:{port}")[0] == 403


def test_the_server_refuses_a_taken_port_and_no_port(port: int, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="in use"):
        serve(tmp_path, port)
    with pytest.raises(ValueError, match="expected a port from 0 to 65535, got 70000"):
        serve(tmp_path, 70000)
