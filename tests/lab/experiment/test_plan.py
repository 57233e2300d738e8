# SPDX-License-Identifier: Apache-2.0
"""A plan says which cells there are, and where; its record grows by names, and keeps what it has."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from contourdiff_lab.experiment import plan_record
from contourdiff_lab.experiment.plan import Cell, ExperimentPlan
from contourdiff_lab.experiment.plan_inputs import read_inputs
from contourdiff_lab.experiment.plan_record import GROWING, plan_entries, record_plan


def test_rows_have_the_seeds_that_change_something() -> None:
    """A row that translates nothing has one translation, a baseline that segments one training."""
    rows = ("without_adaptation", "ours", "synseg")
    seeds = {"translation_seeds": (3, 4), "seeds": (0, 1)}
    plan = ExperimentPlan("ct", "mr", "out", rows=rows, architectures=("unet",), **seeds)
    by_row: dict[str, list[tuple[int, int]]] = {}
    for cell in plan.cells():
        by_row.setdefault(cell.row, []).append((cell.translation_seed, cell.seed))
    assert by_row == {
        "without_adaptation": [(3, 0), (3, 1)],
        "ours": [(3, 0), (3, 1), (4, 0), (4, 1)],
        "synseg": [(3, 0), (4, 0)],
    }


def test_a_cell_is_known_by_its_folder() -> None:
    cell = Cell("ours", -1, "swin_unetr", 12)
    assert Cell.of_folder(Path("out") / cell.folder) == cell
    with pytest.raises(ValueError, match="expected a folder <architecture>_translation<seed>"):
        Cell.of_folder(Path("out/ours/unet_translations_seed"))


def test_a_short_plan_keeps_settings_that_take_no_time() -> None:
    plan = ExperimentPlan("ct", "mr", "out", translation={"spacing_mm": 2.0, "candidates": 9})
    short = plan.smoke()
    assert short.translation["spacing_mm"] == 2.0
    assert short.translation["candidates"] < 9
    assert replace(short, translation={}, segmentation={}, unconditional={}, baselines={}) == (
        replace(plan, translation={})
    )


def record(plan: ExperimentPlan) -> dict:
    """The record after a plan was started, without running it."""
    path = Path(plan.output_dir) / "plan.json"
    record_plan(path, plan_entries(plan, read_inputs(plan)))
    return json.loads(path.read_text())


@pytest.fixture
def first(plan: ExperimentPlan, tmp_path: Path) -> ExperimentPlan:
    """A plan with a folder of another tool, and folders ``a``, ``b`` and ``c`` beside it."""
    for name in ("a", "b", "c"):
        shutil.copytree(plan.mr_dir, tmp_path / name)
    return replace(
        plan,
        output_dir=tmp_path / "out",
        folders={"other": str(tmp_path / "a")},
        mr_training={**plan.mr_training, "file_pattern": "*_t1*"},
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": {"t1": "*_t2"}}, "groups t1"),
        ({"folders": {"other": "b"}}, "folders other"),
        ({"mr_training": {"file_pattern": "*_t2*"}}, "mr_training unconditional"),
        ({"baselines": {"minutes": 2}}, "baselines cyclegan"),
        ({"translation": {"num_inference_steps": 3}}, r"another plan \(other: \['translation'\]\)"),
    ],
)
def test_a_name_of_a_kept_plan_keeps_its_meaning(
    first: ExperimentPlan, changes: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else old weights or scores would be kept under a new meaning."""
    monkeypatch.chdir(Path(first.output_dir).parent)
    first = replace(first, rows=("unconditional", "ours", "cyclegan"), baselines={"minutes": 1})
    assert record(first) == record(first)
    changed = {name: {**getattr(first, name), **change} for name, change in changes.items()}
    with pytest.raises(ValueError, match=message):
        record(replace(first, **changed))


def test_a_plan_equals_itself_whatever_the_types_of_its_values(first: ExperimentPlan) -> None:
    """JSON knows neither tuples nor paths."""
    translation = {**first.translation, "window_hu": (-160.0, 240.0)}
    segmentation = {"resume_from": Path("none")}
    typed = replace(first, translation=translation, segmentation=segmentation)
    assert record(typed) == record(typed)
    with pytest.raises(ValueError, match="translation"):
        record(replace(typed, translation={**translation, "window_hu": (-160.0, 250.0)}))


def test_names_may_be_added_to_a_plan_and_left_out(first: ExperimentPlan) -> None:
    record(first)
    third = {"third": str(Path(first.output_dir).parent / "c")}
    groups = {**first.groups, "every": "*"}
    record(replace(first, rows=("ours",), folders=third, groups=groups))
    recorded = record(first)
    assert set(recorded["folders"]) == {"other", "third"}
    assert set(recorded["groups"]) == {*first.groups, "every"}


def test_a_folder_is_recorded_by_its_absolute_path(
    first: ExperimentPlan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same relative path is another folder elsewhere."""
    record(first)
    monkeypatch.chdir(tmp_path)
    recorded = record(replace(first, folders={"other": "a"}))
    assert recorded["folders"] == {"other": str((tmp_path / "a").resolve())}
    assert Path(recorded["mr_training"]["unconditional"]["dataset_dir"]).is_absolute()


@pytest.mark.parametrize("absent", ["folders", "groups", "mr_training"])
def test_a_plan_recorded_without_a_newer_entry_is_completed(
    first: ExperimentPlan, absent: str
) -> None:
    complete = record(first)
    older = {name: value for name, value in complete.items() if name != absent}
    (Path(first.output_dir) / "plan.json").write_text(json.dumps(older))
    assert record(first) == complete


PLAN = {"weights": "abc", **{name: {"first": 1} for name in GROWING}}


@pytest.mark.parametrize("name", GROWING)
def test_names_may_be_added_to_a_record_but_not_changed(name: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    record_plan(path, PLAN)
    record_plan(path, {**PLAN, name: {"second": (1, 2)}})
    assert json.loads(path.read_text())[name] == {"first": 1, "second": [1, 2]}
    with pytest.raises(ValueError, match=f"{name} first"):
        record_plan(path, {**PLAN, name: {"first": 2}})


def test_an_entry_of_a_record_that_cannot_grow_stays(tmp_path: Path) -> None:
    record_plan(tmp_path / "plan.json", PLAN)
    with pytest.raises(ValueError, match="weights"):
        record_plan(tmp_path / "plan.json", {**PLAN, "weights": "abd"})


def test_a_record_that_calls_baselines_rivals_is_of_the_same_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    older = {name: value for name, value in PLAN.items() if name != "baselines"}
    path.write_text(json.dumps({**older, "rivals": PLAN["baselines"]}))
    record_plan(path, PLAN)
    assert json.loads(path.read_text()) == PLAN
    path.write_text(json.dumps({**older, "rivals": {"first": 2}}))
    with pytest.raises(ValueError, match="baselines first"):
        record_plan(path, PLAN)


def test_of_two_processes_with_two_plans_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both start in the same moment, before either has written its record."""
    path = tmp_path / "plan.json"
    read = plan_record._read

    def read_slowly(record_path: Path) -> dict:
        record = read(record_path)
        time.sleep(0.3)
        return record

    monkeypatch.setattr(plan_record, "_read", read_slowly)
    refused = []

    def start(weights: str) -> None:
        try:
            record_plan(path, {**PLAN, "weights": weights})
        except ValueError as error:
            refused.append((weights, str(error)))

    threads = [threading.Thread(target=start, args=(weights,)) for weights in ("abc", "abd")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((weights, message),) = refused
    assert "holds a table of another plan (other: ['weights'])" in message
    assert json.loads(path.read_text())["weights"] != weights
