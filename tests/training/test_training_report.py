# SPDX-License-Identifier: Apache-2.0
"""The page of a training shows its loss, its pictures in order, and its settings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from contourdiff.cli import main
from contourdiff.training.training_report import write_training_report
from helpers.runs import write_events


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A training with events, three pictures and settings, one of which looks like markup."""
    folder = tmp_path / "a <b> & c"
    write_events(folder)
    for epoch in (100000, 2, 10):
        Figure(figsize=(1, 1)).savefig(folder / f"translations_{epoch:05}.png")
    (folder / "settings.json").write_text(json.dumps({"seed": 3, "file_pattern": "<i>|*_t1"}))
    return folder


def test_the_page_of_a_training_shows_loss_pictures_and_settings(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["report", str(trained)])
    assert capsys.readouterr().out == f"{trained / 'training.html'}\n"
    page = (trained / "training.html").read_text()
    pictures = [
        "loss.png",
        "translations_00002.png",
        "translations_00010.png",
        "translations_100000.png",
    ]
    assert re.findall(r'<img alt="[^"]+" src="([^"]+)"', page) == pictures
    assert all((trained / name).is_file() for name in pictures)
    assert re.findall(r"<h3[^>]*>(.*?)</h3>", page) == ["Epoch 2", "Epoch 10", "Epoch 100000"]
    assert "<td>0.2500 after epoch 4, lowest 0.2500 after 4</td>" in page
    assert "<td>1970-01-01 00:16 UTC, 1970-01-01 00:20 UTC</td>" in page
    assert "<td><code>3</code></td>" in page
    assert "&lt;i&gt;|*_t1" in page
    assert "<title>Training a &lt;b&gt; &amp; c</title>" in page
    assert not re.search(r"<[bi]>", page)
    assert "| seed | `3` |" in (trained / "training.md").read_text()


def test_a_training_without_settings_and_pictures_has_a_page(tmp_path: Path) -> None:
    write_events(tmp_path)
    page = write_training_report(tmp_path).read_text()
    assert "Settings" not in page
    assert "translations_" not in page
