# SPDX-License-Identifier: Apache-2.0
"""Rows say what they are: overlays that exist, baselines as they are registered, settings for those that have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contourdiff_lab.baselines.training import BASELINES, Baseline
from contourdiff_lab.config_files import lab_config_files
from contourdiff_lab.experiment.rows import ROWS, TABLE, baseline_settings, row_of


@pytest.mark.parametrize("name", [*TABLE, "another tool"])
def test_overlays_exist_and_learners_of_mr_say_so(name: str) -> None:
    row = row_of(name)
    assert lab_config_files(["segmentation_train", *row.overlays])
    assert row.mr_training <= row.translates
    assert row.segments <= row.baseline == (name in BASELINES)
    assert ("MR" in row.learns_from) == (
        name in TABLE and name not in ("without_adaptation", "randomized", "crossdomain")
    )


def test_rows_by_default_need_no_baseline() -> None:
    assert not [row for row in ROWS if TABLE[row].baseline]


def test_a_setting_goes_to_the_baselines_that_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    overlay = tmp_path / "mine.json"
    overlay.write_text(json.dumps({"shape_share": 1}))
    monkeypatch.setitem(
        BASELINES, "mine", Baseline(("cyclegan", str(overlay)), segments=False, needs="CT and MR")
    )
    monkeypatch.setitem(TABLE, "mine", TABLE["cyclegan"])
    settings = {"minutes": 1, "shape_share": 2, "network_def#channels": 8}
    by_baseline = baseline_settings(["ours", "cyclegan", "mine"], settings)
    assert by_baseline == {
        "cyclegan": {"minutes": 1, "network_def#channels": 8},
        "mine": settings,
    }
    with pytest.raises(ValueError, match="got \\['shape_share'\\], which none of them has"):
        baseline_settings(["cyclegan"], settings)
    assert baseline_settings(["ours"], settings) == {}
