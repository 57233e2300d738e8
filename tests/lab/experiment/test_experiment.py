# SPDX-License-Identifier: Apache-2.0
"""The experiment: every cell is computed once, and resumed, and keeps its meaning; on real CT and real MR."""

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
from contourdiff.cli.evaluation import DEFAULT_ROWS, FURTHER_ROWS

from contourdiff.bundle import config_files, read_config
from contourdiff.cli import main
from contourdiff_lab.baselines.training import BASELINES, Baseline
from contourdiff_lab.experiment.experiment import ROWS, ExperimentPlan, run_experiment
from contourdiff_lab.experiment.rows import TABLE, Row
from helpers import CONFIGS


@pytest.fixture(scope="module")
def plan(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> ExperimentPlan:
    """Four sagittal slices of a real CT, two real labelled T1 slices, a handful of MR slices."""
    root = tmp_path_factory.mktemp("table")
    for folder, name in (("ct", "torso_ct"), ("ct/labels", "torso_vertebrae")):
        (root / folder).mkdir()
        image = nib.load(real_data / "ct" / f"{name}.nii.gz")
        nib.save(image.slicer[58:62], root / folder / "torso.nii.gz")
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


def test_a_table_is_written_resumed_and_extended(
    plan: ExperimentPlan, count_runs: list[list[str]]
) -> None:
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
    (page.parent / "ours" / "unet_translation0_seed0" / "t1" / "scores.json").unlink()
    run_experiment(replace(plan, rows=("ours",)))
    assert count_runs.count(["segmentation_train", "evaluate"]) == 1
    assert not any(run == ["segmentation_train"] for run in count_runs)

    count_runs.clear()
    translations = str(page.parent / "ours" / "translations_seed0")
    run_experiment(
        replace(plan, rows=(), folders={"other tool": translations}, architectures=("swin_unetr",))
    )
    assert count_runs == [
        ["segmentation_train", "segmentation_any"],
        ["segmentation_train", "evaluate"],
    ]

    with pytest.raises(ValueError, match=r"another plan \(other: \['translation'\]\)"):
        run_experiment(replace(plan, translation={"num_inference_steps": 3}))


def test_the_upper_bound_tests_every_patient_by_a_network_of_others(
    plan: ExperimentPlan, count_runs: list[list[str]], tmp_path: Path
) -> None:
    for name in ("images", "labels"):
        for file in sorted((Path(plan.mr_dir) / name).glob("spider_10[68]_*_slice0*")):
            (tmp_path / "mr" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path / "mr" / name)
    groups = {"all": "*", "t1": "*_t1_*"}  # T1 of one patient only
    own = replace(
        plan,
        rows=("upper_bound",),
        mr_dir=tmp_path / "mr",
        output_dir=tmp_path / "out",
        groups=groups,
    )
    own = replace(own, patient_pattern="spider_([0-9]+)", mr_training={})
    root = run_experiment(own).parent / "upper_bound"
    train, test = ["segmentation_train", "segmentation_any"], ["segmentation_train", "evaluate"]
    assert count_runs == [train, test, test, train, test]
    for number, (patient, other) in enumerate((("106", "108"), ("108", "106"))):
        fold = root / f"unet_fold{number}_seed0"
        assert json.loads((fold / "trained.json").read_text())["patients"] == [other]
        assert {path.name.split("_")[1] for path in (fold / "all").glob("*_pred.nii.gz")} == {
            patient
        }
    cell = root / "unet_translation0_seed0"
    cases = [
        case.name.removesuffix("_pred.nii.gz")
        for case in sorted((cell / "all").glob("*_pred.nii.gz"))
    ]
    assert cases == [
        path.name.split(".")[0] for path in sorted((tmp_path / "mr" / "images").iterdir())
    ]
    summary = json.loads((cell / "all" / "scores.json").read_text())["summary"][0]
    assert summary["structures"] == len(cases)
    assert summary["dice_low"] is not None  # an interval over both patients

    count_runs.clear()
    (cell / "all" / "scores.json").unlink()
    (root / "unet_fold1_seed0" / "all" / "scores.json").unlink()
    run_experiment(own)
    assert count_runs == [test]
    assert json.loads((cell / "all" / "scores.json").read_text())["summary"][0] == summary
    with pytest.raises(ValueError, match="two patients or more"):
        run_experiment(replace(own, patient_pattern="(spider)"))


def test_random_contrast_learns_from_the_ct_alone(
    plan: ExperimentPlan, count_runs: list[list[str]], tmp_path: Path
) -> None:
    run_experiment(
        replace(
            plan,
            rows=("randomized",),
            output_dir=tmp_path,
            mr_training={},
            translation_seeds=(0, 1),
        )
    )
    overlays = ["segmentation_ct", "segmentation_randomized"]
    assert count_runs == [["segmentation_train", *overlays], ["segmentation_train", "evaluate"]]
    trained = json.loads(
        (tmp_path / "randomized" / "unet_translation0_seed0" / "trained.json").read_text()
    )
    assert trained["dataset_dir"] == str(tmp_path / "ct")


def test_a_baseline_is_trained_once_a_seed_and_translates_like_the_other_rows(
    plan: ExperimentPlan, count_runs: list[list[str]], tmp_path: Path
) -> None:
    """A tiny CycleGAN, whole: trained, translated, learned from and reported."""
    own = replace(plan, rows=("cyclegan",), output_dir=tmp_path)
    page = run_experiment(own).read_text()
    weights, translations = (
        tmp_path / "cyclegan" / f"{name}_seed0" for name in ("weights", "translations")
    )
    trained = json.loads((weights / "trained.json").read_text())
    assert (trained["method"], trained["iterations"]) == ("cyclegan", 2)
    assert (translations / "torso_mr.nii.gz").is_file()
    assert count_runs[-2:] == [["segmentation_train"], ["segmentation_train", "evaluate"]]
    assert "| cyclegan | CT and MR |" in page
    assert (tmp_path / "translations.png").stat().st_size > 10_000
    quality = json.loads(
        (tmp_path / "cyclegan" / "quality" / "translations_seed0" / "quality.json").read_text()
    )
    assert 0 <= quality["cases"][0]["fidelity"] <= 1

    count_runs.clear()
    before = (weights / "generator.pt").stat().st_mtime_ns
    run_experiment(own)
    assert count_runs == []
    assert (weights / "generator.pt").stat().st_mtime_ns == before


def test_of_a_baseline_that_segments_the_own_network_is_tested(
    plan: ExperimentPlan,
    count_runs: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """One for each architecture and translation seed, and no other is trained on its translations."""
    trainings: list[tuple] = []

    def train(method: str, ct_dir: Path, mr_dir: str, output_dir: Path, **settings: object) -> Path:
        trainings.append(
            (method, settings["architecture"], settings["seed"], settings["minutes"], mr_dir)
        )
        given = {name: settings[name] for name in ("architecture", "label_map")}
        network = read_config(config_files(base="segmentation_train"), given).get_parsed_content(
            "network_def"
        )
        output_dir.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), output_dir / "segmentation.pt")
        (output_dir / "trained.json").write_text(
            json.dumps({"seconds": 60, "parameters": 10, "settings": {}})
        )
        return output_dir

    def translate(baseline_dir: Path, ct_dir: Path, output_dir: Path, **_: object) -> Path:
        output_dir.mkdir(parents=True, exist_ok=True)
        shutil.copy(ct_dir / "torso.nii.gz", output_dir / "torso_mr.nii.gz")
        shutil.copy(ct_dir / "labels" / "torso.nii.gz", output_dir / "torso_label.nii.gz")
        return output_dir

    monkeypatch.setattr("contourdiff_lab.experiment.experiment.train_baseline", train)
    monkeypatch.setattr("contourdiff_lab.experiment.experiment.translate_with_baseline", translate)
    monkeypatch.setitem(
        BASELINES, "synseg", Baseline(("cyclegan",), segments=True, needs="CT with labels, and MR")
    )
    monkeypatch.setitem(
        TABLE,
        "synseg",
        Row("CT with labels, and MR", True, baseline=True, segments=True, mr_training=True),
    )
    own = replace(
        plan, rows=("synseg",), output_dir=tmp_path, seeds=(0, 1), translation_seeds=(0, 1)
    )
    run_experiment(replace(own, baselines={"minutes": 1}))
    assert count_runs == [["segmentation_train", "evaluate"]] * 2
    assert set(trainings) == {
        ("synseg", "unet", seed, 1, plan.mr_training["dataset_dir"]) for seed in (0, 1)
    }
    row = tmp_path / "synseg"
    for seed in (0, 1):
        cell, weights = row / f"unet_translation{seed}_seed0", row / f"weights_seed{seed}_unet"
        assert (cell / "model.pt").read_bytes() == (weights / "segmentation.pt").read_bytes()
        assert (row / f"translations_seed{seed}_unet" / "torso_mr.nii.gz").is_file()
    assert not list(row.glob("*_seed1/model.pt"))


@pytest.fixture
def only_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment that checks and records its plan, and computes nothing."""
    for step in ("labelled_ct", "translated", "scored"):
        monkeypatch.setattr(f"contourdiff_lab.experiment.experiment._Job.{step}", lambda *_: None)
    monkeypatch.setattr(
        "contourdiff_lab.experiment.experiment.write_report", lambda folder, *_, **__: folder
    )


@pytest.fixture
def first(plan: ExperimentPlan, only_plans: None, tmp_path: Path) -> ExperimentPlan:
    """A plan with a folder of its own, and further folders ``b`` and ``c`` beside it."""
    for name in ("a", "b", "c"):
        shutil.copytree(plan.mr_dir, tmp_path / name)
    training = {**plan.mr_training, "file_pattern": "t1/*"}
    return replace(
        plan,
        output_dir=tmp_path / "out",
        folders={"other": str(tmp_path / "a")},
        mr_training=training,
    )


def recorded(plan: ExperimentPlan) -> dict:
    return json.loads((Path(plan.output_dir) / "plan.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": {"t1": "*_t2_*"}}, "groups t1"),
        ({"folders": {"other": "b"}}, "folders other"),
        ({"mr_training": {"file_pattern": "t2/*"}}, "mr_training unconditional"),
        ({"rows": ("cyclegan",), "baselines": {"minutes": 2}}, "baselines cyclegan"),
    ],
)
def test_a_name_of_a_kept_plan_keeps_its_meaning(
    first: ExperimentPlan, changes: dict, message: str
) -> None:
    """Else old weights or scores would be kept under a new meaning."""
    first = replace(first, rows=(*ROWS, "cyclegan"), baselines={"minutes": 1})
    run_experiment(first)
    run_experiment(first)
    beside = Path(first.output_dir).parent
    changes = {n: c if n == "rows" else {**getattr(first, n), **c} for n, c in changes.items()}
    changes["folders"] = {
        name: beside / folder for name, folder in changes.get("folders", first.folders).items()
    }
    with pytest.raises(ValueError, match=message):
        run_experiment(replace(first, **changes))


def test_a_plan_equals_itself_whatever_the_types_of_its_values(first: ExperimentPlan) -> None:
    """JSON knows neither tuples nor paths."""
    typed = replace(
        first,
        translation={"window_hu": (-160.0, 240.0)},
        segmentation={"resume_from": Path("none")},
    )
    run_experiment(typed)
    run_experiment(typed)
    with pytest.raises(ValueError, match="translation"):
        run_experiment(replace(typed, translation={"window_hu": (-160.0, 250.0)}))


def test_names_may_be_added_and_left_out(first: ExperimentPlan) -> None:
    run_experiment(first)
    third = {"third": str(Path(first.output_dir).parent / "c")}
    run_experiment(
        replace(first, rows=("ours",), folders=third, groups={**first.groups, "every": "*"})
    )
    run_experiment(first)
    assert set(recorded(first)["folders"]) == {"other", "third"}
    assert set(recorded(first)["groups"]) == {*first.groups, "every"}


def test_a_folder_is_recorded_by_its_absolute_path(
    first: ExperimentPlan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same relative path is another folder elsewhere."""
    run_experiment(first)
    monkeypatch.chdir(tmp_path)
    run_experiment(replace(first, folders={"other": "a"}))
    assert recorded(first)["folders"] == {"other": str((tmp_path / "a").resolve())}
    assert Path(recorded(first)["mr_training"]["unconditional"]["dataset_dir"]).is_absolute()


def test_a_plan_recorded_without_the_newer_keys_is_completed(first: ExperimentPlan) -> None:
    run_experiment(first)
    complete = recorded(first)
    older = {
        name: value
        for name, value in complete.items()
        if name not in ("folders", "groups", "mr_training")
    }
    (Path(first.output_dir) / "plan.json").write_text(json.dumps(older))
    run_experiment(first)
    assert recorded(first) == complete


def test_single_candidates_and_empty_contours_are_what_the_rows_say(plan: ExperimentPlan) -> None:
    run_experiment(plan)
    root = Path(plan.output_dir)
    folders = {row: root / row / "translations_seed0" for row in ROWS[1:4]}
    settings = {
        row: json.loads((folder / "torso_mr.json").read_text())["settings"]
        for row, folder in folders.items()
    }
    assert [settings[row]["candidates"] for row in folders] == [2, 1, 2]
    assert [settings[row]["unconditional"] for row in folders] == [True, False, False]
    images = {
        row: nib.load(folder / "torso_mr.nii.gz").get_fdata() for row, folder in folders.items()
    }
    assert (images["unconditional"] != images["ours"]).any()
    weights = torch.load(root / "unconditional" / "weights" / "model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())


def test_every_contrast_and_every_translation_seed_is_learned_from(plan: ExperimentPlan) -> None:
    """Two contrasts are two cases of one label; another seed is another translation, with a cell of its own."""
    page = run_experiment(
        replace(plan, rows=("without_adaptation", "ours_t1_t2"), translation_seeds=(0, 1))
    )
    with (page.parent / "table.csv").open(newline="") as file:
        cells = [(record["row"], record["translation_seed"]) for record in csv.DictReader(file)]
    both = [seed for row, seed in cells if row == "ours_t1_t2"]
    assert both == ["0", "1"]
    assert [seed for row, seed in cells if row == "without_adaptation"] == ["0"]
    folders = [page.parent / "ours_t1_t2" / f"translations_seed{seed}" for seed in both]
    names = ["torso_t1", "torso_t2"]
    images = [
        nib.load(folder / f"{name}_mr.nii.gz").get_fdata() for folder in folders for name in names
    ]
    assert len({image.tobytes() for image in images}) == 4
    for name in names:
        label = np.asarray(nib.load(folders[0] / f"{name}_label.nii.gz").dataobj)
        np.testing.assert_array_equal(
            label, np.asarray(nib.load(page.parent / "ct" / "labels" / "torso.nii.gz").dataobj)
        )


def test_a_training_that_was_cut_off_ends_as_if_it_had_not(
    plan: ExperimentPlan, count_runs: list[list[str]], tmp_path: Path
) -> None:
    short = replace(
        plan, rows=("without_adaptation",), segmentation={"max_epochs": 2, "val_interval": 1}
    )
    run_experiment(replace(short, output_dir=tmp_path / "a"))
    whole = tmp_path / "a" / "without_adaptation" / "unet_translation0_seed0"
    cell = tmp_path / "b" / "without_adaptation" / "unet_translation0_seed0"
    monai.bundle.run(
        config_file=[
            str(CONFIGS / f"{name}.json") for name in ("segmentation_train", "segmentation_ct")
        ],
        **{"dataset_dir": str(tmp_path / "a" / "ct"), "output_dir": str(cell), "val_fraction": 0.0},
        **{"val_interval": 1, "max_epochs": 1, "lr_scheduler#T_max": 2},
    )
    assert (cell / "checkpoint_epoch=1.pt").is_file()
    run_experiment(replace(short, output_dir=tmp_path / "b"))
    assert (cell / "checkpoint_epoch=2.pt").is_file()
    expected, resumed = (
        torch.load(folder / "model.pt", weights_only=True) for folder in (whole, cell)
    )
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ("mine",)}, "expected rows out of"),
        ({"folders": {"ours": "somewhere"}}, "folders under other names"),
        ({"architectures": ("vnet",)}, "expected architectures out of"),
        ({"seeds": ()}, "a seed and a group"),
        ({"translation": {"seed": 1}}, "expected seeds as translation_seeds"),
        ({"mr_training": {}}, "learns from MR"),
        ({"rows": ("cyclegan",), "mr_training": {}}, "'cyclegan' learns from MR"),
        (
            {"rows": ("cyclegan",), "baselines": {"minute": 1}},
            r"expected settings of \['cyclegan'\], got \['minute'\]",
        ),
        ({"baselines": {"seed": 1}}, "expected seeds as translation_seeds"),
        ({"rows": ("upper_bound",), "patient_pattern": "(spider)"}, "two patients or more"),
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


def test_the_help_names_every_row() -> None:
    assert DEFAULT_ROWS.split() == list(ROWS)
    assert set(TABLE) <= {*DEFAULT_ROWS.split(), *FURTHER_ROWS.split()}


def test_the_command_line_passes_the_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans: list[ExperimentPlan] = []
    monkeypatch.setattr(
        "contourdiff_lab.experiment.experiment.run_experiment",
        lambda plan: plans.append(plan) or Path("table.md"),
    )
    options = [
        "--groups",
        "t1=*_t1_*",
        "t2=*_t2_*",
        "--segmentation",
        "max_epochs=40",
        "--seeds",
        "0",
        "1",
    ]
    options += ["--baselines", "minutes=30"]
    training = [
        "--mr_training",
        "dataset_dir=mr",
        "file_pattern=*/t1",
        "--folders",
        "cycle=cycle_gan",
    ]
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
        baselines={"minutes": 30},
        mr_training={"dataset_dir": "mr", "file_pattern": "*/t1"},
    )
    assert (
        plans[1]
        == ExperimentPlan(ct_dir="ct", mr_dir="mr", output_dir="out", rows=["ours"]).smoke()
    )
    assert capsys.readouterr().out == "table.md\ntable.md\n"
    with pytest.raises(SystemExit, match="name=value"):
        main(["table", "ct", "mr", "out", "--groups", "t1"])
