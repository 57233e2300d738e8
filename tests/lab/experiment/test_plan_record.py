# SPDX-License-Identifier: Apache-2.0
"""A recorded plan grows by names, and keeps what it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contourdiff_lab.experiment.plan_record import GROWING, record_plan

PLAN = {"weights": "abc", **{name: {"first": 1} for name in GROWING}}


@pytest.mark.parametrize("name", GROWING)
def test_names_may_be_added_but_not_changed(name: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    record_plan(path, PLAN)
    record_plan(path, {**PLAN, name: {"second": (1, 2)}})
    assert json.loads(path.read_text())[name] == {"first": 1, "second": [1, 2]}
    with pytest.raises(ValueError, match=f"{name} first"):
        record_plan(path, {**PLAN, name: {"first": 2}})


def test_anything_else_stays(tmp_path: Path) -> None:
    record_plan(tmp_path / "plan.json", PLAN)
    with pytest.raises(ValueError, match="weights"):
        record_plan(tmp_path / "plan.json", {**PLAN, "weights": "abd"})
