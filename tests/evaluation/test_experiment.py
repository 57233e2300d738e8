# SPDX-License-Identifier: Apache-2.0
"""The table of the experiment: every cell is made once, resumed, and told truly; on real CT and real MR."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch

from contourdiff.cli import main
from contourdiff.evaluation.experiment import ROWS, ExperimentPlan, run_experiment
from contourdiff.evaluation.experiment_report import _figure, write_report
from helpers import CONFIGS, write_nifti

AFFINE = np.diag([4.0, 1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def plan(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> ExperimentPlan:
    """Eight sagittal slices of a real CT, two real labelled T1 slices, a handful of MR slices."""
    root = tmp_path_factory.mktemp("table")
    for folder, name in (("ct", "torso_ct"), ("ct/labels", "torso_vertebrae")):
        (root / folder).mkdir()
        image = nib.load(real_data / "ct" / f"{name}.nii.gz")
        nib.save(image.slicer[56:64], root / folder / "torso.nii.gz")
    return ExperimentPlan(
        ct_dir=root / "ct",
        mr_dir=real_data / "mr_lumbar_labelled",
        output_dir=root / "out",
        architectures=("unet",),
        groups={"t1": "spider_106_t1_slice0*"},
        mr_training={
            "dataset_dir": str(real_data / "mr_lumbar"),
            "datalist": "index.csv",
            "file_pattern": "t1/spider_0[0-3]*",
        },
    ).smoke()


@pytest.fixture
def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of the configs of every bundle run."""
    runs: list[list[str]] = []
    original: Callable[..., None] = monai.bundle.run

    def run(**settings: object) -> None:
        runs.append([Path(str(file)).stem for file in settings["config_file"]])  # type: ignore[attr-defined]
        original(**settings)

    monkeypatch.setattr(monai.bundle, "run", run)
    return runs


def test_table_is_made_resumed_and_extended(plan: ExperimentPlan, count_runs: list[list[str]]) -> None:
    page = run_experiment(plan)
    with (page.parent / "table.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    assert [record["row"] for record in records] == list(ROWS)
    assert {record["structures"] for record in records} == {"2"}
    assert all(0 <= float(record["dice"]) <= 1 for record in records)
    assert len(count_runs) == 1 + 2 * len(ROWS)  # unconditional weights, training and test a cell
    assert (page.parent / "predictions_t1.png").stat().st_size > 10_000
    assert "0.683" in page.read_text()

    count_runs.clear()
    (page.parent / "ours" / "unet_seed0" / "t1" / "scores.json").unlink()
    run_experiment(replace(plan, rows=("ours",)))
    assert count_runs.count(["segmentation_train", "evaluate"]) == 1
    assert not any(run == ["segmentation_train"] for run in count_runs)

    count_runs.clear()
    translations = str(page.parent / "ours" / "translations")
    run_experiment(replace(plan, rows=(), folders={"other tool": translations}, architectures=("swin_unetr",)))
    assert count_runs == [["segmentation_train", "segmentation_any"], ["segmentation_train", "evaluate"]]

    with pytest.raises(ValueError, match=r"another plan \(other: \['translation'\]\)"):
        run_experiment(replace(plan, translation={"num_inference_steps": 3}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": {"t1": "*_t2_*"}}, "groups t1"),
        ({"folders": {"other": "b"}}, "folders other"),
        ({"mr_training": {"file_pattern": "t2/*"}}, "mr_training unconditional"),
    ],
)
def test_a_name_of_a_kept_plan_keeps_its_meaning(
    plan: ExperimentPlan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict, message: str
) -> None:
    """Else old weights or scores would be kept under a new meaning; new names may be added."""
    for step in ("labelled_ct", "translated", "scored"):
        monkeypatch.setattr(f"contourdiff.evaluation.experiment._Job.{step}", lambda *_: None)
    monkeypatch.setattr("contourdiff.evaluation.experiment.write_report", lambda folder, *_, **__: folder)
    for name in ("a", "b", "c"):
        shutil.copytree(plan.mr_dir, tmp_path / name)
    folders = {name: str(tmp_path / folder) for name, folder in changes.pop("folders", {}).items()}
    training = {**plan.mr_training, "file_pattern": "t1/*"}
    root = tmp_path / "out"
    first = replace(plan, output_dir=root, folders={"other": str(tmp_path / "a")}, mr_training=training)
    run_experiment(first)
    run_experiment(first)
    if "mr_training" in changes:
        changes["mr_training"] = {**plan.mr_training, **changes["mr_training"]}
    with pytest.raises(ValueError, match=message):
        run_experiment(replace(first, folders={**first.folders, **folders}, **changes))
    added = {"folders": {"third": str(tmp_path / "c")}, "groups": {**plan.groups, "every": "*"}}
    run_experiment(replace(first, rows=("ours",), **added))
    run_experiment(first)
    kept = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert set(kept["folders"]) == {"other", "third"}
    assert set(kept["groups"]) == {*plan.groups, "every"}


def test_single_candidates_and_empty_contours_are_what_the_rows_say(plan: ExperimentPlan) -> None:
    run_experiment(plan)
    root = Path(plan.output_dir)
    settings = {
        row: json.loads((root / row / "translations" / "torso_mr.json").read_text())["settings"] for row in ROWS[1:]
    }
    assert [settings[row]["candidates"] for row in ROWS[1:]] == [2, 1, 2]
    assert [settings[row]["unconditional"] for row in ROWS[1:]] == [True, False, False]
    images = {row: nib.load(root / row / "translations" / "torso_mr.nii.gz").get_fdata() for row in ROWS[1:]}
    assert (images["unconditional"] != images["ours"]).any()
    weights = torch.load(root / "unconditional" / "weights" / "model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())


def test_a_training_that_was_cut_off_ends_as_if_it_had_not(
    plan: ExperimentPlan, count_runs: list[list[str]], tmp_path: Path
) -> None:
    short = replace(plan, rows=("without_adaptation",), segmentation={"max_epochs": 2, "val_interval": 1})
    run_experiment(replace(short, output_dir=tmp_path / "a"))
    whole = tmp_path / "a" / "without_adaptation" / "unet_seed0"
    cell = tmp_path / "b" / "without_adaptation" / "unet_seed0"
    monai.bundle.run(
        config_file=[str(CONFIGS / f"{name}.json") for name in ("segmentation_train", "segmentation_ct")],
        **{"dataset_dir": str(tmp_path / "a" / "ct"), "output_dir": str(cell), "val_fraction": 0.0},
        **{"val_interval": 1, "max_epochs": 1, "lr_scheduler#T_max": 2},
    )
    assert (cell / "checkpoint_epoch=1.pt").is_file()
    run_experiment(replace(short, output_dir=tmp_path / "b"))
    assert (cell / "checkpoint_epoch=2.pt").is_file()
    expected, resumed = (torch.load(folder / "model.pt", weights_only=True) for folder in (whole, cell))
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ("mine",)}, "expected rows out of"),
        ({"folders": {"ours": "somewhere"}}, "folders under other names"),
        ({"architectures": ("vnet",)}, "expected architectures out of"),
        ({"seeds": ()}, "a seed and a group"),
        ({"mr_training": {}}, "learns from MR"),
        ({"groups": {"t7": "*_t7_*"}}, "no labelled case"),
        ({"label_map": "none.json"}, "pass --label_map"),
        ({"ct_dir": "nowhere"}, "expected a folder"),
    ],
)
def test_bad_plans_are_refused_before_any_work(
    plan: ExperimentPlan, count_runs: list[list[str]], tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        run_experiment(replace(plan, output_dir=tmp_path / "none", **changes))
    assert count_runs == []
    assert not (tmp_path / "none").exists()


def test_command_line_makes_the_plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plans: list[ExperimentPlan] = []
    monkeypatch.setattr(
        "contourdiff.evaluation.experiment.run_experiment", lambda plan: plans.append(plan) or Path("table.md")
    )
    options = ["--groups", "t1=*_t1_*", "t2=*_t2_*", "--segmentation", "max_epochs=40", "--seeds", "0", "1"]
    training = ["--mr_training", "dataset_dir=mr", "file_pattern=*/t1", "--folders", "cycle=cycle_gan"]
    main(["table", "ct", "mr", "out", *options, *training])
    main(["table", "ct", "mr", "out", "--smoke", "--rows", "ours"])
    assert plans[0] == ExperimentPlan(
        ct_dir="ct",
        mr_dir="mr",
        output_dir="out",
        groups={"t1": "*_t1_*", "t2": "*_t2_*"},
        seeds=[0, 1],
        folders={"cycle": "cycle_gan"},
        segmentation={"max_epochs": 40},
        mr_training={"dataset_dir": "mr", "file_pattern": "*/t1"},
    )
    assert plans[1] == ExperimentPlan(ct_dir="ct", mr_dir="mr", output_dir="out", rows=["ours"]).smoke()
    assert capsys.readouterr().out == "table.md\ntable.md\n"
    with pytest.raises(SystemExit, match="name=value"):
        main(["table", "ct", "mr", "out", "--groups", "t1"])


def test_page_counts_missed_structures_and_means_over_seeds(tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "mr" / "images" / "a.nii.gz", np.random.default_rng(0).random((1, 20, 30)), AFFINE)
    label = np.zeros((1, 20, 30), dtype=np.uint8)
    label[0, 5:9, 6:12] = 1
    write_nifti(tmp_path / "mr" / "labels" / image.name, label, AFFINE)
    for seed, (dice, missed) in enumerate([(0.5, 0), (0.0, 1)]):
        folder = tmp_path / "ours" / f"unet_seed{seed}" / "all"
        write_nifti(folder / "a_pred.nii.gz", label * (1 - missed), AFFINE)
        measures = {"dice": dice, "assd_penalized_mm": 2.0 + 8 * missed, "hd95_penalized_mm": 3.0}
        ends = {f"{name}_{end}": None for name in measures for end in ("low", "high")}
        counts = {"class": "femur", "cases": 1, "structures": 1, "missed": missed, "invented": 0, "dice_pooled": dice}
        summary = [counts | measures | ends | {"assd_mm": None, "hd95_mm": None}] * 2
        (folder / "scores.json").write_text(json.dumps({"summary": summary}))
    page = write_report(tmp_path, {"all": "*"}, tmp_path / "mr")
    assert "| ours | unet | femur | 2 | 0.250 ± 0.354 | 6.0 ± 5.7 | 1 of 2 |" in page.read_text()


def test_a_figure_without_any_value_says_so() -> None:
    assert _figure([{"dice": None}], "dice", 3) == "n/a"
