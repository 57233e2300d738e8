# SPDX-License-Identifier: Apache-2.0
"""Two writers of one file do not disturb each other, and what a killed one leaves is removed."""

from __future__ import annotations

import os
from pathlib import Path

from contourdiff.data.atomic import OWNER, atomic_write, remove_partial_files


def test_the_last_of_two_writers_wins_and_both_files_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    with atomic_write(path) as first:
        first.write_text("first")
        with atomic_write(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_partial_files_of_an_owner_or_of_an_age_are_removed(tmp_path: Path) -> None:
    left = {}
    for owner in ("run-1", "run-2", "file"):
        token = OWNER.set(owner)
        with atomic_write(tmp_path / "ct" / "a.nii.gz") as aside:
            aside.write_text(owner)
        left[owner] = aside
        OWNER.reset(token)
    for owner, aside in left.items():
        aside.write_text(owner)
    remove_partial_files(tmp_path, "run-1")
    assert [owner for owner, aside in left.items() if aside.exists()] == ["run-2", "file"]
    os.utime(left["file"], (0, 0))
    remove_partial_files(tmp_path, older_than_s=3600)
    assert [owner for owner, aside in left.items() if aside.exists()] == ["run-2"]
    assert (tmp_path / "ct" / "a.nii.gz").read_text() == "file"
