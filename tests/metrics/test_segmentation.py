# SPDX-License-Identifier: Apache-2.0
"""Laws of the scores of segmentations: they equal what is written out plainly, and nothing missed is hidden."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted, Compose, EnsureChannelFirstd, LoadImaged

from contourdiff.metrics.intervals import patient_interval
from contourdiff.metrics.segmentation import (
    MEASURES,
    SegmentationScores,
    mean_text,
    score_case,
    summarize_scores,
    write_scores,
)

ONE = {1: "femur"}
(PERFECT,) = score_case(np.eye(4, dtype=int), np.eye(4, dtype=int), ONE, (1, 1), "a")


def random_mask(seed: int, shape: tuple[int, ...], share: float = 0.3) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < share).astype(np.int16)


def surface_points_mm(mask: np.ndarray, spacing: tuple[float, ...]) -> list[tuple[float, ...]]:
    """Places of the pixels of ``mask`` with a neighbor along an axis that is outside of it or of the image."""
    inside = {tuple(int(i) for i in place) for place in np.argwhere(mask)}
    steps = [
        tuple(sign * int(i == axis) for i in range(mask.ndim))
        for axis in range(mask.ndim)
        for sign in (-1, 1)
    ]
    surface = [
        p
        for p in inside
        if any(tuple(map(sum, zip(p, step, strict=True))) not in inside for step in steps)
    ]
    return [tuple(i * size for i, size in zip(place, spacing, strict=True)) for place in surface]


def oracle(
    pred: np.ndarray, label: np.ndarray, spacing: tuple[float, ...]
) -> tuple[float, float, float]:
    """Dice, ASSD and HD95 of two masks that are not empty: every pair of surface points is visited."""
    one, other = surface_points_mm(pred, spacing), surface_points_mm(label, spacing)
    there = [min(math.dist(point, target) for target in other) for point in one]
    back = [min(math.dist(point, target) for target in one) for point in other]
    both = sum(bool(p) and bool(q) for p, q in zip(pred.ravel(), label.ravel(), strict=True))
    dice = 2 * both / (int((pred != 0).sum()) + int((label != 0).sum()))
    return (
        dice,
        sum(there + back) / len(there + back),
        max(percentile_95(there), percentile_95(back)),
    )


def percentile_95(distances: list[float]) -> float:
    """Linear interpolation between the two nearest ranks."""
    ranked, position = sorted(distances), 0.95 * (len(distances) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (position - low) * (ranked[high] - ranked[low])


def ball(shape: tuple[int, ...], center: tuple[float, ...], radius: float) -> np.ndarray:
    grids = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    return (
        sum((grid - c) ** 2 for grid, c in zip(grids, center, strict=True)) <= radius**2
    ).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((9, 7), (1.0, 1.0)),
        ((9, 7), (0.5, 3.0)),
        ((7, 9), (3.0, 0.5)),
        ((6, 5, 4), (1.0, 1.0, 1.0)),
        ((6, 5, 4), (0.7, 2.5, 5.0)),
    ],
)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_scores_equal_every_pair_of_surface_points(
    shape: tuple[int, ...], spacing: tuple[float, ...], share: float
) -> None:
    for seed in range(4):
        pred, label = random_mask(seed, shape, share), random_mask(100 + seed, shape, 0.3)
        pred.flat[seed] = label.flat[-1 - seed] = 1  # none is empty
        (row,) = score_case(pred, label, ONE, spacing, "a")
        assert (row["dice"], row["assd_mm"], row["hd95_mm"]) == pytest.approx(
            oracle(pred, label, spacing), rel=1e-5
        )
        assert (row["assd_penalized_mm"], row["hd95_penalized_mm"]) == (
            row["assd_mm"],
            row["hd95_mm"],
        )
        assert (row["pred_voxels"], row["label_voxels"]) == (pred.sum(), label.sum())


def test_the_mean_is_over_the_points_of_both_surfaces_not_of_two_means() -> None:
    pred, label = np.zeros((20, 20), int), np.zeros((20, 20), int)
    pred[5, 5] = 1
    label[5, 5:16] = 1
    (row,) = score_case(pred, label, ONE, (1, 1), "a")
    assert row["assd_mm"] == pytest.approx(
        55 / 12
    )  # 0 there, 0 to 10 back; the mean of the two means is 2.5


def test_a_shift_by_one_pixel_is_its_size_in_mm() -> None:
    label = np.zeros((30, 30), int)
    label[10, 5:25] = 1
    for axis, expected in ((0, 2.5), (1, 2 * 0.7 / 40)):
        (row,) = score_case(np.roll(label, 1, axis), label, ONE, (2.5, 0.7), "a")
        assert row["assd_mm"] == pytest.approx(expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_slice_is_scored_as_a_slice(axis: int) -> None:
    pred, label = ball((24, 20), (11, 9), 6), ball((24, 20), (12, 10), 7)
    (flat,) = score_case(pred, label, ONE, (0.8, 1.3), "a")
    spacing = [0.8, 1.3]
    spacing.insert(axis, 40.0)
    (volume,) = score_case(
        np.expand_dims(pred, axis), np.expand_dims(label, axis), ONE, spacing, "a"
    )
    assert volume == flat
    assert flat["assd_mm"] == pytest.approx(oracle(pred, label, (0.8, 1.3))[1], rel=1e-5)


def test_equal_segmentations_have_dice_1_and_no_distance() -> None:
    label = ball((12, 12, 12), (6, 6, 6), 4) + 2 * ball((12, 12, 12), (1, 1, 1), 1)
    for row in score_case(label, label, {1: "femur", 2: "pelvis"}, (1, 2, 3), "a"):
        assert (row["dice"], row["assd_mm"], row["hd95_mm"]) == (1, 0, 0)


def test_swapping_prediction_and_label_changes_no_score() -> None:
    pred, label = random_mask(1, (9, 8, 5)), random_mask(2, (9, 8, 5), 0.5)
    (there,), (back,) = (
        score_case(a, b, ONE, (1, 2, 3), "a") for a, b in ((pred, label), (label, pred))
    )
    assert [there[key] for key in MEASURES] == pytest.approx([back[key] for key in MEASURES])


def test_each_class_is_scored_alone_and_others_are_background() -> None:
    label = ball((20, 20), (6, 6), 3) + 2 * ball((20, 20), (14, 14), 3)
    pred = np.where(label == 2, 7, label)
    femur, pelvis = score_case(pred, label, {1: "femur", 2: "pelvis"}, (1, 1), "a")
    assert (femur["class"], femur["dice"], femur["missed"]) == ("femur", 1, False)
    assert (pelvis["class"], pelvis["dice"], pelvis["missed"]) == ("pelvis", 0, True)


def test_a_missed_structure_costs_the_diagonal() -> None:
    label = ball((30, 40), (15, 20), 5)
    (row,) = score_case(np.zeros_like(label), label, ONE, (2.0, 0.5), "a")
    assert (row["missed"], row["invented"], row["present"], row["dice"]) == (True, False, True, 0)
    assert math.isnan(row["assd_mm"])
    assert math.isnan(row["hd95_mm"])
    assert row["assd_penalized_mm"] == row["hd95_penalized_mm"] == pytest.approx(math.hypot(60, 20))
    (volume,) = score_case(
        np.zeros_like(label)[..., None], label[..., None], ONE, (2.0, 0.5, 99.0), "a"
    )
    assert volume["assd_penalized_mm"] == row["assd_penalized_mm"]


@pytest.mark.parametrize("invented", [False, True])
def test_what_the_label_lacks_is_not_averaged(invented: bool) -> None:
    label = np.zeros((9, 9), int)
    pred = ball((9, 9), (4, 4), 2) if invented else label
    (row,) = score_case(pred, label, ONE, (1, 1), "a")
    assert (row["missed"], row["invented"], row["present"]) == (False, invented, False)
    assert all(math.isnan(row[measure]) for measure in MEASURES)


@pytest.mark.parametrize(
    ("pred", "label", "spacing", "text"),
    [
        (
            np.zeros((4, 4)),
            np.zeros((4, 5)),
            (1, 1),
            r"expected prediction and label of one shape, got \(4, 4\) and",
        ),
        (
            np.zeros((4, 4)),
            np.zeros((4, 4)),
            (1, 1, 1),
            r"expected 2 positive spacings in mm.*got \[1.0, 1.0, 1.0\]",
        ),
        (np.zeros((4, 4)), np.zeros((4, 4)), (1, 0), "expected 2 positive spacings"),
        (
            np.zeros((4, 1)),
            np.zeros((4, 1)),
            (1, 1),
            r"expected a slice or a volume, got shape \(4, 1\)",
        ),
        (np.zeros((2, 4, 4, 4)), np.zeros((2, 4, 4, 4)), (1,) * 4, "separate the channels"),
        (
            np.full((4, 4), 0.5),
            np.zeros((4, 4)),
            (1, 1),
            "a: expected integer classes in the prediction.*argmax",
        ),
        (
            np.zeros((4, 4)),
            np.full((4, 4), np.nan),
            (1, 1),
            "expected integer classes in the label",
        ),
    ],
)
def test_a_pair_that_cannot_be_scored_is_refused(
    pred: np.ndarray, label: np.ndarray, spacing: tuple[float, ...], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        score_case(pred, label, ONE, spacing, "a")


@pytest.mark.parametrize("classes", [{}, {1: "femur", 2: "femur"}, {1: "all"}])
def test_classes_need_names_of_their_own(classes: dict[int, str]) -> None:
    with pytest.raises(ValueError, match=r"expected .*name"):
        score_case(np.zeros((4, 4), int), np.zeros((4, 4), int), classes, (1, 1), "a")


def cohort() -> list[dict]:
    """Four cases of two classes: good, shifted, femur missed, pelvis absent from the label but invented."""
    label = ball((40, 40), (12, 12), 6) + 2 * ball((40, 40), (28, 28), 6)
    femur = np.where(label == 1, 1, 0)
    pairs = {
        "good": (label, label),
        "shifted": (np.roll(label, 2, 0), label),
        "missed": (np.where(label == 1, 0, label), label),
        "invented": (label, femur),
    }
    classes = {1: "femur", 2: "pelvis"}
    return [
        row
        for case, (pred, ref) in pairs.items()
        for row in score_case(pred, ref, classes, (1.5, 1.0), case)
    ]


def test_a_missed_structure_lowers_dice_and_stands_beside_the_distances() -> None:
    rows = cohort()
    femur, pelvis, everything = summarize_scores(rows)
    shifted = next(row for row in rows if row["case"] == "shifted" and row["class"] == "femur")
    assert (
        femur["cases"],
        femur["structures"],
        femur["found"],
        femur["missed"],
        femur["invented"],
    ) == (4, 4, 3, 1, 0)
    assert femur["dice"] == pytest.approx((1 + shifted["dice"] + 0 + 1) / 4)
    assert femur["assd_mm"] == pytest.approx(shifted["assd_mm"] / 3)
    assert femur["assd_penalized_mm"] == pytest.approx(
        (shifted["assd_mm"] + math.hypot(60, 40)) / 4
    )
    assert femur["hd95_penalized_mm"] == pytest.approx(
        (shifted["hd95_mm"] + math.hypot(60, 40)) / 4
    )
    assert (pelvis["cases"], pelvis["missed"], pelvis["invented"]) == (3, 0, 1)
    assert (everything["class"], everything["cases"], everything["structures"]) == ("all", 4, 7)
    assert (everything["missed"], everything["invented"]) == (1, 1)
    pelvis_shifted = next(
        row for row in rows if row["case"] == "shifted" and row["class"] == "pelvis"
    )
    of_shifted = (shifted["dice"] + pelvis_shifted["dice"]) / 2
    assert everything["dice"] == pytest.approx((1 + of_shifted + 1 / 2 + 1) / 4)


def test_pooled_dice_is_of_all_cases_laid_side_by_side() -> None:
    label, other = ball((30, 30), (12, 12), 8), ball((30, 30), (20, 20), 3)
    nothing = np.zeros_like(label)
    pairs = {"a": (np.roll(label, 3, 0), label), "b": (nothing, other), "c": (other, nothing)}
    rows = [
        row
        for case, (pred, ref) in pairs.items()
        for row in score_case(pred, ref, ONE, (1, 1), case)
    ]
    beside = [np.concatenate([pair[i] for pair in pairs.values()]) for i in (0, 1)]
    (whole,) = score_case(beside[0], beside[1], ONE, (1, 1), "d")
    assert summarize_scores(rows)[0]["dice_pooled"] == pytest.approx(whole["dice"])


def test_a_class_that_is_never_there_has_no_mean() -> None:
    nothing = np.zeros((9, 9), int)
    (row, _) = summarize_scores(score_case(nothing, nothing, ONE, (1, 1), "a"))
    assert (row["cases"], row["missed"], row["invented"]) == (0, 0, 0)
    assert math.isnan(row["dice_pooled"])
    assert all(math.isnan(row[measure]) for measure in MEASURES)


def row_of(case: str, name: str, dice: float) -> dict:
    return PERFECT | {"case": case, "class": name, "dice": dice}


def test_the_bootstrap_is_deterministic_and_depends_on_its_seed() -> None:
    rows = [row_of(f"c{i}", "femur", value) for i, value in enumerate(np.linspace(0.2, 0.9, 12))]
    first, again, other = (
        summarize_scores(rows),
        summarize_scores(rows),
        summarize_scores(rows, seed=1),
    )
    assert first == again
    assert first[0]["dice_low"] != other[0]["dice_low"]
    assert 0.2 < first[0]["dice_low"] < first[0]["dice"] < first[0]["dice_high"] < 0.9


def test_a_patient_counts_once_however_many_cases_he_has() -> None:
    """Nine slices of one patient and one of another: the mean is between the two patients."""
    rows = [row_of(f"a{i}", "femur", 0.9) | {"patient": "a"} for i in range(9)]
    rows.append(row_of("b", "femur", 0.1) | {"patient": "b"})
    row = summarize_scores(rows)[0]
    assert row["dice"] == pytest.approx(0.5)
    assert row["dice_patients"] == pytest.approx({"a": 0.9, "b": 0.1})
    assert (row["cases"], row["structures"]) == (10, 10)


def test_few_patients_are_shown_one_by_one_and_many_have_an_interval() -> None:
    values = {str(number): 0.05 * number + 0.3 for number in range(8)}
    low, high = patient_interval(list(values.values()), highest=1)
    assert mean_text(values, "dice", 2) == f"0.47 [{low:.2f}, {high:.2f}]"
    values.pop("7")
    assert mean_text(values, "dice", 2) == "0.45 (0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60)"
    assert mean_text({"a": 0.5}, "dice", 2) == "0.50"
    assert mean_text({}, "dice", 2) == "n/a"


def test_the_interval_of_all_draws_a_case_with_its_classes() -> None:
    """Four equal classes a case hold no more knowledge than one: the interval of all is that of one class."""
    values = np.linspace(0.3, 0.9, 8)
    rows = [row_of(f"c{i}", name, value) for i, value in enumerate(values) for name in "abcd"]
    one, *_, everything = summarize_scores(rows)
    assert (everything["dice_low"], everything["dice_high"]) == pytest.approx(
        (one["dice_low"], one["dice_high"])
    )


def test_one_case_has_no_interval_and_a_case_stands_once() -> None:
    row = summarize_scores([row_of("a", "femur", 0.5)])[0]
    assert row["dice"] == 0.5
    assert math.isnan(row["dice_low"])
    assert math.isnan(row["dice_high"])
    with pytest.raises(ValueError, match=r"twice: \[\('a', 'femur'\)\]"):
        summarize_scores([row_of("a", "femur", 0.5)] * 2)
    with pytest.raises(ValueError, match="got 0 rows"):
        summarize_scores([])


def test_score_files_report_what_was_missed(tmp_path: Path) -> None:
    summary = write_scores(cohort(), tmp_path / "new", {"weights": "abc"})
    content = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert content["settings"] == {"weights": "abc"}
    assert [row["class"] for row in content["summary"]] == ["femur", "pelvis", "all"]
    assert content["summary"][0]["dice"] == summary[0]["dice"]
    table = (tmp_path / "new" / "scores.md").read_text()
    assert "missed 1 of 4" in table
    assert "missed 1 of 7" in table
    assert "- weights: abc" in table
    with (tmp_path / "new" / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8
    missed = next(line for line in lines if line["missed"] == "True")
    assert (missed["case"], missed["class"], missed["dice"], missed["assd_mm"]) == (
        "missed",
        "femur",
        "0.0",
        "",
    )


def test_scores_json_comes_last_and_only_after_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr("contourdiff.metrics.segmentation.write_text", fails)
    with pytest.raises(RuntimeError, match="disk full"):
        write_scores(cohort(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


class Threshold(torch.nn.Module):
    """Two channels, of which the second wins where the image is bright."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.full_like(x, 0.5), x], dim=1)


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> str:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def evaluator_of(
    items: list[dict], handler: SegmentationScores, **options: object
) -> SupervisedEvaluator:
    loading = Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items, loading), batch_size=2),
        network=Threshold(),
        postprocessing=AsDiscreted("pred", argmax=True),
        **options,
    )
    handler.attach(evaluator)
    return evaluator


@pytest.mark.parametrize("shape", [(20, 18, 6), (20, 18, 1), (20, 18)])
def test_handler_scores_files_as_score_case_does(tmp_path: Path, shape: tuple[int, ...]) -> None:
    affine = np.array(
        [[0, 0, 3.0, 5], [0.8, 0, 0, -7], [0, 1.4, 0, 9], [0, 0, 0, 1]]
    )  # sagittal: H and W are A and S
    spacing, items, expected = (0.8, 1.4, 3.0)[: len(shape)], [], []
    for i in range(3):
        label, pred = random_mask(i, shape, 0.4), random_mask(10 + i, shape, 0.0 if i == 1 else 0.4)
        image = save(tmp_path / "images" / f"case{i}_0000.nii.gz", pred.astype(np.float32), affine)
        items.append(
            {"image": image, "label": save(tmp_path / "labels" / f"case{i}.nii.gz", label, affine)}
        )
        rows = score_case(pred, label, ONE, spacing, f"case{i}")
        expected += [row | {"patient": f"case{i}"} for row in rows]
    handler = SegmentationScores({"1": "femur"}, tmp_path / "out", {"weights": "none"})  # type: ignore[dict-item]
    evaluator = evaluator_of(items, handler)
    for _ in range(2):  # a second run starts anew
        evaluator.run()
        for row, plain in zip(handler.rows, expected, strict=True):
            texts = [
                {key: each[key] for key in each if isinstance(each[key], str)}
                for each in (row, plain)
            ]
            assert texts[0] == texts[1]
            numbers = [
                {key: each[key] for key in each if key not in texts[0]} for each in (row, plain)
            ]
            assert numbers[0] == pytest.approx(numbers[1], nan_ok=True)
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [row["missed"] for row in content["summary"]] == [1, 1]
    assert content["settings"] == {"weights": "none"}


def test_a_handler_explains_what_it_requires(tmp_path: Path) -> None:
    mask = random_mask(0, (8, 8, 3))
    path = save(tmp_path / "case.nii.gz", mask.astype(np.float32), np.eye(4))
    items = [{"image": path, "label": path}]
    with pytest.raises(ValueError, match="set decollate=True"):
        evaluator_of(items, SegmentationScores(ONE, tmp_path / "out"), decollate=False).run()
    handler = SegmentationScores(ONE, tmp_path / "out")
    evaluator = evaluator_of(items, handler)
    evaluator.state.output = [{"pred": torch.zeros(2, 8, 8), "label": torch.zeros(1, 8, 8)}]
    with pytest.raises(
        ValueError, match=r"expected pred and label \(1, \*spatial\).*got \(2, 8, 8\).*AsDiscreted"
    ):
        handler(evaluator)
    evaluator.state.output = [{"pred": torch.zeros(1, 8, 8), "label": torch.zeros(1, 8, 8)}]
    with pytest.raises(ValueError, match=r"a label that knows its file.*load it with LoadImaged"):
        handler(evaluator)
    assert not (tmp_path / "out").exists()
