# SPDX-License-Identifier: Apache-2.0
"""Commands that measure: agreement, steps, curve, table, quality, gap."""

from __future__ import annotations

import sys
from typing import Any

from contourdiff.cli.commands import (
    BUNDLE,
    INFERENCE,
    OUTPUT,
    OVERLAYS,
    TRAIN,
    argument,
    command,
    pairs_of,
    parse_settings,
    print_values,
    several,
)

DEFAULT_ROWS = "without_adaptation unconditional single_candidate ours ours_t1_t2"
FURTHER_ROWS = "randomized cyclegan synseg cycada maskgan upper_bound"
DEFAULT_SOLVERS = ("ddim:50", "ddim:15", "ddim:20", "ddim:25", *(f"dpm_solver:{steps}" for steps in (10, 15, 20, 25)))
TRANSLATION = several("translation", "settings of inference.json, such as contrast=t2")
CT_DIR = argument("ct_dir", "CT with labels: <case>.nii.gz and labels/<case>.nii.gz")
LABEL_MAP = argument("--label_map", "JSON file that joins the classes of CT and MR; default: vertebrae")
MR_PATTERN = argument("--mr_pattern", "pattern of the case ids of the MR", default="*")


@command(
    "agreement",
    "translate held-out MR slices from their contours",
    argument("weights"),
    OUTPUT,
    argument("--tolerance_px", "distance up to which contours agree", type=float, default=2.0),
    OVERLAYS,
    TRANSLATION,
    TRAIN,
    BUNDLE,
)
def _agreement(weights: str, output_dir: str, tolerance_px: float, settings: list[str], **translation: Any) -> None:
    from contourdiff.evaluation.held_out import evaluate_bundle

    configs, options = _held_out_options(**translation)
    options |= {"tolerance_px": tolerance_px}
    print_values(evaluate_bundle(configs, weights, output_dir, **options, **parse_settings(settings)))


@command(
    "steps",
    "compare solvers and numbers of steps on held-out MR slices",
    argument("weights"),
    OUTPUT,
    argument("--solvers", nargs="+", default=list(DEFAULT_SOLVERS), metavar="NAME:STEPS"),
    argument("--reference", "stands for the exact solution", default="ddim:200", metavar="NAME:STEPS"),
    argument("--seeds", nargs="+", type=int, default=[0, 1, 2]),
    OVERLAYS,
    TRANSLATION,
    TRAIN,
    BUNDLE,
)
def _steps(
    weights: str,
    output_dir: str,
    solvers: list[str],
    reference: str,
    seeds: list[int],
    settings: list[str],
    **translation: Any,
) -> None:
    from contourdiff.evaluation.solver_comparison import compare_solvers

    configs, options = _held_out_options(**translation)
    options |= {"solvers": solvers, "reference": reference, "seeds": seeds}
    sys.stdout.write(compare_solvers(configs, weights, output_dir, **options, **parse_settings(settings)))


def _held_out_options(bundle: str | None, overlays: list[str], translation: list[str]) -> tuple[list[str], Any]:
    """Files of the training config, and how the held-out slices are translated."""
    from contourdiff.bundle import config_files, training_overlays

    options = {"inference": config_files(bundle, overlays), "translation": parse_settings(translation)}
    return config_files(bundle, training_overlays(bundle, overlays), base="train"), options


@command("curve", "draw the loss curve of a training", argument("log_dir"), argument("path", "PNG to write"))
def _curve(log_dir: str, path: str) -> None:
    from contourdiff.evaluation.loss_curve import loss_curve

    loss_curve(log_dir, path)


@command(
    "table",
    "translate, train segmentation networks, test them on real MR",
    CT_DIR,
    argument("mr_dir", "real MR with labels, to test on: images/ and labels/"),
    OUTPUT,
    LABEL_MAP,
    argument("--rows", f"default: {DEFAULT_ROWS}; further: {FURTHER_ROWS}", nargs="*"),
    argument("--architectures", "unet swin_unetr; default: both", nargs="*"),
    argument("--seeds", "seeds of the training; default: 0", nargs="*", type=int),
    argument("--translation_seeds", "seeds of the translation; default: 0", nargs="*", type=int),
    argument("--patient_pattern", "finds the patient of a test case, for intervals: 'spider_([0-9]+)'"),
    argument("--ckpt_path", "weights of the translator; default: the bundle's"),
    argument("--overlays", "overlays of inference.json; default: fast", nargs="*", metavar="NAME"),
    argument("--smoke", "cut everything short, to check that all parts work together", action="store_true"),
    several("folders", "further rows: translations by any tool", "ROW=FOLDER"),
    several("groups", "test groups that are scored separately, by case id", "NAME=PATTERN"),
    several("mr_training", "dataset_dir=..., datalist=..., file_pattern=... for 'unconditional' and the rivals"),
    several("translation", "settings of inference.json"),
    several("segmentation", "settings of segmentation_train.json"),
    several("unconditional", "settings of train.json for the row 'unconditional'"),
    several("rivals", "settings of cyclegan.json for the rivals, such as minutes=30"),
    BUNDLE,
)
def _table(smoke: bool, folders: list[str], groups: list[str], **options: Any) -> None:
    from contourdiff.evaluation.experiment import ExperimentPlan, run_experiment

    named: dict[str, Any] = {"folders": pairs_of(folders), "groups": pairs_of(groups)}
    settings = ("mr_training", "translation", "segmentation", "unconditional", "rivals")
    named |= {name: parse_settings(options.pop(name)) for name in settings}
    plan = ExperimentPlan(**{name: value for name, value in (options | named).items() if value not in (None, {})})
    sys.stdout.write(f"{run_experiment(plan.smoke() if smoke else plan)}\n")


@command(
    "quality",
    "measure flicker, label boundaries, FID and MMD of a folder of translations",
    argument("folder", "translations with labels"),
    OUTPUT,
    argument("--ct_dir", "the CT that were translated, to measure contour fidelity: <case>.nii.gz"),
    argument("--mr_dir", "real MR with labels to compare with"),
    MR_PATTERN,
    argument("--extractor", "feature extractor, a local TorchScript file that you trust"),
    argument("--foreground_only", "compare bodies only", action="store_true"),
    OVERLAYS,
    INFERENCE,
    BUNDLE,
)
def _quality(folder: str, output_dir: str, extractor: str | None, settings: list[str], **options: Any) -> None:
    from contourdiff.evaluation.folder_quality import folder_quality, write_quality
    from contourdiff.metrics.image_quality import load_extractor

    if extractor is not None:
        options |= {"extractor": load_extractor(extractor), "extractor_name": extractor}
    quality = folder_quality(folder, **options, settings=parse_settings(settings))
    write_quality(quality, output_dir)
    print_values(quality["mean"] | (quality["set"] or {}))


@command(
    "gap",
    "compare the contours of CT and of MR, tissue by tissue",
    CT_DIR,
    argument("mr_dir", "real MR with labels: the same, or images/ and labels/"),
    OUTPUT,
    argument("--ct_pattern", "pattern of the case ids of the CT", default="*"),
    MR_PATTERN,
    argument("--min_inside_cm2", "leave out slices with less area inside bone", type=float, default=0.0),
    LABEL_MAP,
    several("mr_settings", "settings of train.json"),
    OVERLAYS,
    INFERENCE,
    BUNDLE,
)
def _gap(mr_settings: list[str], settings: list[str], **options: Any) -> None:
    from contourdiff.evaluation.contour_gap_report import run_gap

    path = run_gap(**options, mr_settings=parse_settings(mr_settings), **parse_settings(settings))
    sys.stdout.write(f"{path}\n")
