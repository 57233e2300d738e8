# SPDX-License-Identifier: Apache-2.0
"""The experiment: every cell is computed once, and resumed, and keeps its meaning."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch

from contourdiff.bundle import config_files, read_config
from contourdiff.data.atomic import write_json
from contourdiff.data.label_map import LabelMap
from contourdiff.metrics.segmentation import score_case
from contourdiff.weights import sha256_of
from contourdiff_lab.baselines.training import BASELINES, Baseline
from contourdiff_lab.config_files import lab_config_files, read_lab_config
from contourdiff_lab.experiment import cells
from contourdiff_lab.experiment.plan import ExperimentPlan
from contourdiff_lab.experiment.rows import SEGMENTATION_CONFIGS, TABLE, Row, row_of
from contourdiff_lab.experiment.run import run_experiment
from helpers.domains import MR_LEVELS, random_shapes


def read_table(page: Path) -> list[dict[str, str]]:
    with (page.parent / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def times_of(folder: Path) -> dict[Path, int]:
    """When each file of images, weights or scores below a folder was written."""
    times = {}
    for pattern in ("*.nii.gz", "*.pt", "scores.json", "trained.json", "quality.json"):
        for path in folder.rglob(pattern):
            times[path] = path.stat().st_mtime_ns
    return times


@pytest.mark.slow
def test_a_table_has_scores_of_every_row_and_group(plan: ExperimentPlan, table: Path) -> None:
    records = read_table(table)
    assert [(record["row"], record["group"]) for record in records] == [
        (row, group) for row in plan.rows for group in ("all", "t1")
    ]
    assert {record["structures"] for record in records if record["group"] == "t1"} == {"2"}
    assert all(0 <= float(record["dice"]) <= 1 for record in records)
    assert (table.parent / "predictions_t1.png").stat().st_size > 10_000
    assert (table.parent / "translations.png").stat().st_size > 10_000
    assert "0.683" in table.read_text()  # the paper's


@pytest.mark.slow
def test_a_model_without_contours_translates_those_of_the_ct(table: Path) -> None:
    """Trained on empty maps from scratch, given contours: the paper's first ablation."""
    folder = table.parent / "unconditional"
    translation = read_json(folder / "translations_seed0" / "a_mr.json")
    assert translation["settings"]["unconditional"] is False
    first = folder / "networks" / "first"
    assert sha256_of(first / "model.pt") in json.dumps(translation["weights"])
    for value in torch.load(first / "model.pt", weights_only=True).values():
        assert value.isfinite().all()
    record = read_json(first / "trained.json")
    assert (record["steps"], record["contrasts"]) == (2, {"t1": "*", "t2": "/"})
    assert "initial_weights" not in record
    assert read_json(folder / "weights" / "trained.json")["steps"] == 2


def test_the_second_network_without_contours_paints_as_it_was_trained(
    plan: ExperimentPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its architecture is that of the training, also where an overlay of the translation has another one."""

    def trained(configs: object, settings: object, folder: Path, bundle: object) -> None:
        folder.mkdir(parents=True)
        write_json(folder / "trained.json", {"seconds": 1, "steps": 1, "parameters": 1})

    monkeypatch.setattr(cells, "train_once", trained)
    plan = replace(plan, output_dir=tmp_path, overlays=("fast",), unconditional={}, mr_training={})
    inputs = SimpleNamespace(contrast="t1", contrasts=["t1"], has_refiner=True)
    settings = cells._unconditional_weights(plan, inputs)  # type: ignore[arg-type]
    shapes = []
    for parser, name in (
        (read_config(config_files(overlays=("fast",)), settings), "refiner_def"),
        (read_lab_config(("train", "train_refiner"), {}), "network_def"),
    ):
        state = parser.get_parsed_content(name).state_dict()
        shapes.append({key: value.shape for key, value in state.items()})
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("stage", [(), ("train_refiner",)])
def test_empty_contours_are_what_both_networks_are_trained_on(stage: tuple[str, ...]) -> None:
    """The second one still has the coarse image beside its empty map."""
    parser = read_lab_config(("train", *stage, "unconditional"), {"image_size_px": [64, 64]})
    preprocessing = parser.get_parsed_content("train#preprocessing")
    preprocessing.set_random_state(0)
    image = 255 * random_shapes(0, MR_LEVELS, size=64)["image"]
    item = preprocessing({"image": image})
    contour = item["contour"] if not stage else item["contour"][:1]
    assert not contour.any()
    assert item["image"].std() > 0.1
    if stage:
        assert item["contour"][1].std() > 0.1


@pytest.mark.slow
def test_only_what_is_missing_of_a_table_is_computed(
    plan: ExperimentPlan, table: Path, tmp_path: Path
) -> None:
    """A test that is missing is run again with the weights that are there; its scores are the same."""
    shutil.copytree(table.parent / "ours", tmp_path / "ours")
    cell = tmp_path / "ours" / "unet_translation0_seed0"
    missing = cell / "t1" / "scores.json"
    expected = read_json(missing)["summary"]
    shutil.rmtree(cell / "t1")
    before = times_of(tmp_path)
    run_experiment(replace(plan, rows=("ours",), output_dir=tmp_path))
    assert read_json(missing)["summary"] == expected
    after = times_of(tmp_path)
    assert {path: after[path] for path in before} == before


def test_the_same_images_under_two_names_give_the_same_weights(
    plan: ExperimentPlan, tmp_path: Path
) -> None:
    """Whatever the name of a row, and its place among the others."""
    folders = {"first": plan.ct_dir, "second": plan.ct_dir}
    run_experiment(replace(plan, rows=(), folders=folders, output_dir=tmp_path))
    states = []
    for name in folders:
        path = tmp_path / name / "unet_translation0_seed0" / "model.pt"
        states.append(torch.load(path, weights_only=True))
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


@pytest.mark.parametrize("name", [*TABLE, "another tool"])
def test_every_row_has_the_same_steps_augmentation_and_last_weights(
    plan: ExperimentPlan, name: str
) -> None:
    """By default 1500 steps of 8 images; rows whose augmentation is their method say so."""
    row = row_of(name)
    settings = {"dataset_dir": str(plan.ct_dir), **row.segmentation}
    if row.segmentation.get("side") == "mr":
        settings["dataset_dir"] = str(plan.mr_dir)
    parser = read_lab_config((*SEGMENTATION_CONFIGS, *row.overlays), settings)
    loader = parser.get_parsed_content("train#dataloader")
    assert parser["max_epochs"] * len(loader) == 1500
    assert loader.batch_size == 8
    assert parser.get_parsed_content("validate#cases") == []
    plain = read_lab_config(("segmentation_train",), {})
    names = ("shape_augmentation", "intensity_augmentation", "remap_probability", "architectures")
    for entry in names:
        if entry == "intensity_augmentation" and "augmentation" in row.differs:
            continue
        assert parser[entry] == plain[entry]


@pytest.mark.parametrize("method", ["synseg", "cycada"])
def test_the_own_network_of_a_baseline_has_the_augmentation_of_all_rows(method: str) -> None:
    """The same shapes and gray levels, in every stage in which it is trained."""
    parser = read_lab_config(BASELINES[method].configs, {})
    plain = read_lab_config(("segmentation_train",), {})
    expected = plain.get_parsed_content("intensity_augmentation").transforms
    own = parser.get_parsed_content("intensity_augmentation").transforms
    assert [type(step) for step in own] == [type(step) for step in expected]
    shape = parser["augmentation"]
    for name in ("prob", "rotate_range", "scale_range", "padding_mode", "mode"):
        wanted = plain["shape_augmentation"][name]
        value = shape[name]
        if isinstance(value, str) and value.startswith("@"):
            value = parser[value[1:]]
        assert value == wanted
    if method == "cycada":
        steps = parser["unit_transform"]["transforms"]
        assert steps == ["@augmentation", "@to_unit_range", "@intensity_augmentation"]
        for stage in (
            "task_slices#dataset",
            "feature_slices#dataset#ct",
            "feature_slices#dataset#mr",
        ):
            assert parser[f"{stage}#transform"] == "@unit_transform"
    else:
        assert parser["terms#segmentation#augmentation"] == "@intensity_augmentation"


def test_a_folder_of_another_tool_is_a_row(plan: ExperimentPlan, tmp_path: Path) -> None:
    changes = {"rows": (), "folders": {"other tool": plan.ct_dir}, "groups": {"t2": "*_t2"}}
    page = run_experiment(replace(plan, output_dir=tmp_path, **changes))
    trained = read_json(tmp_path / "other tool" / "unet_translation0_seed0" / "trained.json")
    assert trained["dataset_dir"] == str(plan.ct_dir)
    assert [record["row"] for record in read_table(page)] == ["other tool"]


@pytest.mark.slow
def test_every_contrast_and_every_translation_seed_is_learned_from(
    plan: ExperimentPlan, tmp_path: Path
) -> None:
    """Two contrasts are two cases of one label; another seed is another translation, with a cell of its own."""
    rows = ("without_adaptation", "ours_t1_t2")
    page = run_experiment(
        replace(plan, rows=rows, translation_seeds=(0, 1), groups={"all": "*"}, output_dir=tmp_path)
    )
    cells = [(record["row"], record["translation_seed"]) for record in read_table(page)]
    assert cells == [("without_adaptation", "0"), ("ours_t1_t2", "0"), ("ours_t1_t2", "1")]
    images = set()
    for seed in (0, 1):
        folder = tmp_path / "ours_t1_t2" / f"translations_seed{seed}"
        for contrast in ("t1", "t2"):
            images.add(nib.load(folder / f"a_{contrast}_mr.nii.gz").get_fdata().tobytes())
            label = nib.load(folder / f"a_{contrast}_label.nii.gz")
            expected = nib.load(tmp_path / "ct" / "labels" / "a.nii.gz")
            np.testing.assert_array_equal(label.dataobj, expected.dataobj)
    assert len(images) == 4


def test_random_contrast_learns_from_the_ct_alone(plan: ExperimentPlan, tmp_path: Path) -> None:
    changes = {"mr_training": {}, "translation_seeds": (0, 1), "groups": {"all": "*"}}
    page = run_experiment(replace(plan, rows=("randomized",), output_dir=tmp_path, **changes))
    assert len(read_table(page)) == 1  # nothing is translated, so the first seed stands for all
    trained = read_json(tmp_path / "randomized" / "unet_translation0_seed0" / "trained.json")
    assert trained["dataset_dir"] == str(tmp_path / "ct")


def test_the_upper_bound_tests_every_patient_by_a_network_of_others(
    plan: ExperimentPlan, tmp_path: Path
) -> None:
    changes = {"mr_training": {}, "groups": {"all": "*", "t2": "*_t2"}}
    bound = replace(plan, rows=("upper_bound",), output_dir=tmp_path, **changes)
    run_experiment(bound)
    root = tmp_path / "upper_bound"
    for number, patient, trained_on in ((0, "01", "02"), (1, "02", "01")):
        fold = root / f"unet_fold{number}_seed0"
        assert read_json(fold / "trained.json")["patients"] == [trained_on]
        tested = {path.name[:2] for path in (fold / "all").glob("*_pred.nii.gz")}
        assert tested == {patient}
    assert not (root / "unet_fold1_seed0" / "t2").exists()  # that patient has no T2
    cell = root / "unet_translation0_seed0"
    names = sorted(path.name for path in (cell / "all").glob("*_pred.nii.gz"))
    assert names == ["01_t1_pred.nii.gz", "01_t2_pred.nii.gz", "02_t1_pred.nii.gz"]
    summary = read_json(cell / "all" / "scores.json")["summary"][0]
    assert summary["structures"] == len(names)
    assert set(summary["dice_patients"]) == {"01", "02"}

    weights = root / "unet_fold0_seed0" / "model.pt"
    before = weights.stat().st_mtime_ns
    (cell / "all" / "scores.json").unlink()
    (root / "unet_fold1_seed0" / "all" / "scores.json").unlink()
    run_experiment(bound)
    assert read_json(cell / "all" / "scores.json")["summary"][0] == summary
    assert weights.stat().st_mtime_ns == before


def test_the_upper_bound_of_other_patients_is_one_network(
    plan: ExperimentPlan, tmp_path: Path
) -> None:
    """Trained on the reference, tested on everyone; a patient on both sides is refused."""
    reference = tmp_path / "reference"
    for kind in ("images", "labels"):
        (reference / kind).mkdir(parents=True)
        source = Path(plan.mr_dir) / kind / "01_t1.nii.gz"
        shutil.copy(source, reference / kind / "77_t1.nii.gz")
    bound = replace(
        plan, rows=("upper_bound",), reference_dir=reference, output_dir=tmp_path / "out"
    )
    page = run_experiment(bound)
    cell = tmp_path / "out" / "upper_bound" / "unet_translation0_seed0"
    assert read_json(cell / "trained.json")["dataset_dir"] == str(reference)
    assert [record["structures"] for record in read_table(page)] == ["3", "2"]
    shutil.copy(reference / "images" / "77_t1.nii.gz", reference / "images" / "02_t9.nii.gz")
    shutil.copy(reference / "labels" / "77_t1.nii.gz", reference / "labels" / "02_t9.nii.gz")
    with pytest.raises(ValueError, match=r"expected other patients in .* got \['02'\] in both"):
        run_experiment(replace(bound, output_dir=tmp_path / "other"))


@pytest.mark.slow
def test_a_baseline_is_trained_once_a_seed_and_translates_like_the_other_rows(
    plan: ExperimentPlan, tmp_path: Path
) -> None:
    """A tiny CycleGAN, whole: trained, translated, learned from and reported."""
    cyclegan = replace(plan, rows=("cyclegan",), output_dir=tmp_path, groups={"all": "*"})
    page = run_experiment(cyclegan).read_text()
    row = tmp_path / "cyclegan"
    trained = read_json(row / "weights_seed0" / "trained.json")
    assert (trained["method"], trained["iterations"]) == ("cyclegan", 2)
    assert (row / "translations_seed0" / "a_mr.nii.gz").is_file()
    assert "| cyclegan | CT and MR |" in page
    assert (tmp_path / "translations.png").stat().st_size > 10_000
    quality = read_json(row / "quality" / "translations_seed0" / "quality.json")
    assert 0 <= quality["cases"][0]["fidelity"] <= 1

    before = times_of(row)
    run_experiment(cyclegan)
    assert times_of(row) == before


def test_of_a_baseline_that_segments_the_own_network_is_tested(
    plan: ExperimentPlan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One for each architecture and translation seed, and no other is trained on its translations."""
    trainings: list[tuple] = []

    def train(method: str, ct_dir: Path, mr_dir: str, output_dir: Path, **settings: object) -> Path:
        trainings.append((method, settings["architecture"], settings["seed"], settings["minutes"]))
        assert mr_dir == plan.mr_training["dataset_dir"]
        network_settings = {**plan.segmentation, "label_map": settings["label_map"]}
        config = read_lab_config(SEGMENTATION_CONFIGS, network_settings)
        network = config.get_parsed_content("network_def")
        output_dir.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), output_dir / "segmentation.pt")
        record = {"seconds": 60, "parameters": 10, "settings": {}}
        (output_dir / "trained.json").write_text(json.dumps(record))
        return output_dir

    def translate(baseline_dir: Path, ct_dir: Path, output_dir: Path, **_: object) -> Path:
        output_dir.mkdir(parents=True, exist_ok=True)
        shutil.copy(ct_dir / "a.nii.gz", output_dir / "a_mr.nii.gz")
        shutil.copy(ct_dir / "labels" / "a.nii.gz", output_dir / "a_label.nii.gz")
        return output_dir

    needs = "CT with labels, and MR"
    row = Row(needs, translates=True, baseline=True, segments=True, mr_training=True)
    baseline = Baseline(("cyclegan",), segments=True, needs=needs)
    monkeypatch.setattr("contourdiff_lab.experiment.cells.train_baseline", train)
    monkeypatch.setattr("contourdiff_lab.experiment.cells.translate_with_baseline", translate)
    monkeypatch.setitem(BASELINES, "synseg", baseline)
    monkeypatch.setitem(TABLE, "synseg", row)
    changes = {"seeds": (0, 1), "translation_seeds": (0, 1), "groups": {"all": "*"}}
    run_experiment(
        replace(plan, rows=("synseg",), output_dir=tmp_path, baselines={"minutes": 1}, **changes)
    )
    assert set(trainings) == {("synseg", "unet", seed, 1) for seed in (0, 1)}
    folder = tmp_path / "synseg"
    for seed in (0, 1):
        cell = folder / f"unet_translation{seed}_seed0"
        weights = folder / f"weights_seed{seed}_unet"
        assert (cell / "model.pt").read_bytes() == (weights / "segmentation.pt").read_bytes()
        assert (cell / "all" / "scores.json").is_file()
        assert (folder / f"translations_seed{seed}_unet" / "a_mr.nii.gz").is_file()
    assert not list(folder.glob("*_seed1/model.pt"))


@pytest.mark.slow
def test_a_training_that_was_cut_off_ends_as_if_it_had_not(
    plan: ExperimentPlan, tmp_path: Path
) -> None:
    segmentation = {**plan.segmentation, "max_epochs": 2, "val_interval": 1}
    changes = {"segmentation": segmentation, "groups": {"t1": "*_t1"}}
    short = replace(plan, rows=("without_adaptation",), **changes)
    run_experiment(replace(short, output_dir=tmp_path / "a"))
    whole = tmp_path / "a" / "without_adaptation" / "unet_translation0_seed0"
    cell = tmp_path / "b" / "without_adaptation" / "unet_translation0_seed0"
    cut_off = {
        **segmentation,
        "dataset_dir": str(tmp_path / "a" / "ct"),
        "output_dir": str(cell),
        "max_epochs": 1,
        "lr_scheduler#T_max": 2,
    }
    configs = lab_config_files([*SEGMENTATION_CONFIGS, "segmentation_ct"])
    monai.bundle.run(config_file=configs, **cut_off)
    assert (cell / "checkpoint_epoch=1.pt").is_file()
    run_experiment(replace(short, output_dir=tmp_path / "b"))
    assert (cell / "checkpoint_epoch=2.pt").is_file()
    expected = torch.load(whole / "model.pt", weights_only=True)
    resumed = torch.load(cell / "model.pt", weights_only=True)
    for name, value in expected.items():
        assert torch.equal(value, resumed[name])


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
        ({"translation": {"contrasts": ["t1"]}}, "requires a network of two contrasts"),
        ({"rows": ("upper_bound",), "patient_pattern": "(0)"}, "two patients or more"),
        ({"groups": {"t7": "*_t7_*"}}, "no labelled case"),
        ({"label_map": "none.json"}, "pass --label_map"),
        ({"ct_dir": "nowhere"}, "expected a folder"),
    ],
)
def test_bad_plans_are_refused_before_any_work(
    plan: ExperimentPlan, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        run_experiment(replace(plan, output_dir=tmp_path / "none", **changes))
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_an_experiment_in_short_runs_on_real_ct_and_mr_with_the_shipped_weights(
    real_data: Path, tmp_path: Path
) -> None:
    """Four sagittal slices of a CT, two labelled T1 slices."""
    for folder, name in (("ct", "torso_ct"), ("ct/labels", "torso_vertebrae")):
        (tmp_path / folder).mkdir()
        image = nib.load(real_data / "ct" / f"{name}.nii.gz")
        nib.save(image.slicer[58:62], tmp_path / folder / "torso.nii.gz")
    plan = ExperimentPlan(
        ct_dir=tmp_path / "ct",
        mr_dir=real_data / "mr_lumbar_labelled",
        output_dir=tmp_path / "out",
        rows=("ours",),
        architectures=("unet",),
        groups={"t1": "spider_106_t1_slice0*"},
    )
    page = run_experiment(plan.smoke())
    (record,) = read_table(page)
    assert record["structures"] == "2"
    assert 0 <= float(record["dice"]) <= 1


def test_volumes_with_labels_of_their_own_are_scored_in_three_dimensions(
    real_data: Path, tmp_path: Path
) -> None:
    """T2 SPACE: value 1 is a vertebra, 2 a disc, 3 the canal; a prediction of another slice is an error of the case."""
    label_map = tmp_path / "map.json"
    classes = {"classes": ["vertebra"], "ct": {"vertebra": ["1", "27-50"]}}
    label_map.write_text(json.dumps({**classes, "mr": {"vertebra": [1]}}))
    labels = real_data / "mr_lumbar_space_labelled" / "labels"
    volume = np.asarray(nib.load(labels / "space_011_t2space.nii.gz").dataobj)
    values = LabelMap(label_map).values("mr")
    vertebra = np.isin(volume, values[1])
    assert vertebra.sum() == (volume == 1).sum() > 0
    moved = np.roll(vertebra, 1, axis=int(np.argmin(volume.shape)))
    sizes = nib.load(labels / "space_011_t2space.nii.gz").header.get_zooms()
    spacing_mm = [float(size) for size in sizes]
    (row,) = score_case(moved.astype(int), vertebra.astype(int), {1: "v"}, spacing_mm, "011")
    overlap = (moved & vertebra).sum()
    assert row["dice"] == pytest.approx(2 * overlap / (moved.sum() + vertebra.sum()))
    assert 0.3 < row["dice"] < 0.99
    assert 0 < row["assd_mm"] < max(spacing_mm)
    for name in ("volunteer_vertebrae", "s0328_vertebrae", "torso_vertebrae"):
        ct = np.asarray(nib.load(real_data / "ct" / f"{name}.nii.gz").dataobj)
        assert np.isin(ct, LabelMap(label_map).values("ct")[1]).any()
