# SPDX-License-Identifier: Apache-2.0
"""Loss curves from event files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from contourdiff.cli import main
from contourdiff.training.loss_curve import loss_curve
from helpers.runs import write_events


def test_the_loss_curve_is_drawn_whole(tmp_path: Path) -> None:
    write_events(tmp_path / "logs")
    loss_curve(tmp_path / "logs", tmp_path / "new/curve.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curve.png"]
    assert (tmp_path / "new/curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_tag_of_the_loss_is_explained(tmp_path: Path) -> None:
    write_events(tmp_path / "logs")
    for file in (tmp_path / "logs").glob("*.train"):
        file.unlink()
    with pytest.raises(ValueError, match="expected the tag train_loss"):
        loss_curve(tmp_path / "logs", tmp_path / "curve.png")


def test_a_loss_curve_of_an_empty_folder_is_explained(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(FileNotFoundError, match="found none; pass the output_dir"):
        loss_curve(tmp_path, tmp_path / "curve.png")


def test_without_tensorboard_the_command_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(
        SystemExit, match=r"^error: .*TensorBoard; pip install 'contourdiff\[train\]'$"
    ):
        main(["curve", str(tmp_path), str(tmp_path / "curve.png")])
    assert not (tmp_path / "curve.png").exists()
