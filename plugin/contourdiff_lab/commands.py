# SPDX-License-Identifier: Apache-2.0
"""Commands of the lab: table, baseline, gap, agreement, steps, quality, paired."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contourdiff.cli.commands import (
    BUNDLE,
    DEVICE,
    INFERENCE,
    OUTPUT,
    OVERLAYS,
    TRAIN,
    argument,
    flag,
    pairs_of,
    parse_settings,
    print_values,
    several,
)
from contourdiff.cli.program import Program

LAB = Program("contourdiff-lab", "Compare and investigate translations of CT into MR.")

DEFAULT_ROWS = "without_adaptation crossdomain ours ours_t1_t2"
FURTHER_ROWS = "randomized unconditional single_candidate ours_crossdomain cyclegan synseg cycada maskgan upper_bound"
DEFAULT_SOLVERS = (
    "ddim:50",
    "ddim:15",
    "ddim:20",
    "ddim:25",
    "dpm_solver:10",
    "dpm_solver:15",
    "dpm_solver:20",
    "dpm_solver:25",
)
REFERENCE_SOLVER = "ddim:200"
PLAN_SETTINGS = ("mr_training", "translation", "segmentation", "unconditional", "baselines")

CT_DIR = argument("ct_dir", "CT with labels: <case>.nii.gz and labels/<case>.nii.gz")
LABEL_MAP = argument(
    "--label_map", "JSON file that joins the classes of CT and MR; default: vertebrae"
)
MR_PATTERN = argument(
    "--mr_pattern", "pattern of the case ids of the MR; default: *, all of them", default="*"
)
TRANSLATION = several("translation", "settings of inference.json, such as contrast=t2")


@LAB.command(
    "table",
    "translate CT in several ways, train segmentation networks on the results, and test them on real MR",
    CT_DIR,
    argument("mr_dir", "real MR with labels, to test on: images/ and labels/"),
    OUTPUT,
    LABEL_MAP,
    argument(
        "--reference_dir",
        "labelled MR of other patients that upper_bound is trained on; default: mr_dir, cross-validated",
    ),
    argument(
        "--rows",
        f"ways to compare; default: {DEFAULT_ROWS}; further: {FURTHER_ROWS}",
        nargs="*",
    ),
    argument(
        "--architectures", "of the segmentation networks; default: unet swin_unetr", nargs="*"
    ),
    argument("--seeds", "seeds of the segmentation's training; default: 0", nargs="*", type=int),
    argument("--translation_seeds", "seeds of the translation; default: 0", nargs="*", type=int),
    argument(
        "--patient_pattern",
        "finds the patient in a test case's id, for confidence intervals, such as 'spider_([0-9]+)'; "
        "default: (.*), every case is a patient",
    ),
    argument("--ckpt_path", "weights of the translator; default: the bundle's"),
    argument("--overlays", "overlays of inference.json; default: fast", nargs="*", metavar="NAME"),
    flag("smoke", "cut everything short, to check that all parts work together"),
    several("folders", "further rows: translations by any tool", "ROW=FOLDER"),
    several("groups", "test groups that are scored separately, by case id", "NAME=PATTERN"),
    several(
        "mr_training",
        "MR that 'unconditional' and the baselines learn from: dataset_dir=..., datalist=..., file_pattern=...",
    ),
    several("translation", "settings of inference.json, such as num_inference_steps=15"),
    several(
        "segmentation", "settings of segmentation_train.json, such as max_epochs=40: 2000 steps"
    ),
    several("unconditional", "settings of train.json for the row 'unconditional'"),
    several("baselines", "settings of cyclegan.json for the baselines, such as minutes=30"),
    BUNDLE,
    examples="""example:
  contourdiff-lab table ct mr_test table --rows ours cyclegan --mr_training dataset_dir=mr_train --baselines minutes=30
The same command goes on where it stopped.""",
)
def _table(smoke: bool, folders: list[str], groups: list[str], **options: Any) -> None:
    from contourdiff_lab.experiment.plan import ExperimentPlan
    from contourdiff_lab.experiment.run import run_experiment

    options["folders"] = pairs_of(folders)
    options["groups"] = pairs_of(groups)
    for name in PLAN_SETTINGS:
        options[name] = parse_settings(options[name])
    plan = ExperimentPlan(**_passed(options))
    if smoke:
        plan = plan.smoke()
    sys.stdout.write(f"{run_experiment(plan)}\n")


@LAB.command(
    "baseline",
    "train a baseline on unpaired CT and MR, and translate the CT with it",
    argument("method", "cyclegan, synseg, cycada or maskgan"),
    argument(
        "ct_dir", "CT: <case>.nii.gz, and labels/<case>.nii.gz for the methods that use labels"
    ),
    argument("mr_dir", "folder of MR images (NIfTI)"),
    OUTPUT,
    LABEL_MAP,
    argument(
        "--datalist",
        "CSV or JSON file that assigns images to training and validation, relative to MR_DIR; "
        "default: 10 %% of the images are held out",
    ),
    argument(
        "--pattern",
        "keep MR files whose path in MR_DIR matches, such as 't1/*'; default: *, all of them",
    ),
    argument(
        "--minutes",
        "end the training after this time, which counts over resumes; default: after 200 epochs",
        type=float,
    ),
    argument("--seed", "of the training; default: 0", type=int),
    DEVICE,
    several("settings", "settings of cyclegan.json, such as generator_blocks=6"),
    BUNDLE,
    examples="""examples:
  contourdiff-lab baseline cyclegan ct mr baselines/cyclegan --minutes 120
  contourdiff-lab baseline cyclegan ct mr baselines/small --settings generator_channels=32 generator_blocks=6
The same command goes on where it stopped. The MR is in OUTPUT_DIR/translations.""",
)
def _baseline(
    method: str,
    ct_dir: str,
    mr_dir: str,
    output_dir: str,
    bundle: str | None,
    pattern: str | None,
    settings: list[str],
    **options: Any,
) -> None:
    from contourdiff_lab.baselines.training import train_baseline, translate_with_baseline

    training = {**parse_settings(settings), **_passed({"file_pattern": pattern, **options})}
    train_baseline(method, ct_dir, mr_dir, output_dir, bundle=bundle, **training)
    translations = Path(output_dir) / "translations"
    device = _passed({"device": options["device"]})
    translate_with_baseline(output_dir, ct_dir, translations, bundle=bundle, **device)
    print_values({"weights": f"{output_dir}/generator.pt", "translations": translations})


@LAB.command(
    "gap",
    "compare the contours of CT and of MR, tissue by tissue",
    CT_DIR,
    argument("mr_dir", "real MR with labels: the same, or images/ and labels/"),
    OUTPUT,
    argument(
        "--ct_pattern", "pattern of the case ids of the CT; default: *, all of them", default="*"
    ),
    MR_PATTERN,
    argument(
        "--min_inside_cm2",
        "leave out slices with less area inside bone, in square centimeters; default: 0",
        type=float,
        default=0.0,
    ),
    LABEL_MAP,
    several("mr_settings", "settings of train.json, for the contours of MR"),
    OVERLAYS,
    INFERENCE,
    BUNDLE,
)
def _gap(mr_settings: list[str], settings: list[str], **options: Any) -> None:
    from contourdiff_lab.contour_gap_report import run_gap

    path = run_gap(**options, mr_settings=parse_settings(mr_settings), **parse_settings(settings))
    sys.stdout.write(f"{path}\n")


@LAB.command(
    "agreement",
    "translate held-out MR slices from their contours, and compare contours",
    argument("weights", "weights of the translator"),
    OUTPUT,
    argument(
        "--tolerance_px",
        "distance in pixels up to which contours agree; default: 2",
        type=float,
        default=2.0,
    ),
    OVERLAYS,
    TRANSLATION,
    TRAIN,
    BUNDLE,
)
def _agreement(
    weights: str,
    output_dir: str,
    tolerance_px: float,
    settings: list[str],
    **translation: Any,
) -> None:
    from contourdiff_lab.held_out import evaluate_bundle

    configs, options = _held_out_options(**translation)
    agreement = evaluate_bundle(
        configs,
        weights,
        output_dir,
        tolerance_px=tolerance_px,
        **options,
        **parse_settings(settings),
    )
    print_values(agreement)


@LAB.command(
    "steps",
    "compare solvers and numbers of steps on held-out MR slices",
    argument("weights", "weights of the translator"),
    OUTPUT,
    argument(
        "--solvers",
        f"to compare; default: {' '.join(DEFAULT_SOLVERS)}",
        nargs="+",
        default=list(DEFAULT_SOLVERS),
        metavar="NAME:STEPS",
    ),
    argument(
        "--reference",
        f"stands for the exact solution; default: {REFERENCE_SOLVER}",
        default=REFERENCE_SOLVER,
        metavar="NAME:STEPS",
    ),
    argument("--seeds", "of the noise; default: 0 1 2", nargs="+", type=int, default=[0, 1, 2]),
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
    from contourdiff_lab.solver_comparison import compare_solvers

    configs, options = _held_out_options(**translation)
    table = compare_solvers(
        configs,
        weights,
        output_dir,
        solvers=solvers,
        reference=reference,
        seeds=seeds,
        **options,
        **parse_settings(settings),
    )
    sys.stdout.write(table)


def _held_out_options(
    bundle: str | None, overlays: list[str], translation: list[str]
) -> tuple[list[str], dict[str, Any]]:
    """Files of the training config, and how the held-out slices are translated."""
    from contourdiff.bundle import config_files
    from contourdiff_lab.config_files import training_overlays

    training = config_files(bundle, training_overlays(bundle, overlays), base="train")
    inference = config_files(bundle, overlays)
    return training, {"inference": inference, "translation": parse_settings(translation)}


@LAB.command(
    "quality",
    "measure flicker, label boundaries, FID and MMD of a folder of translations",
    argument("folder", "translations with labels"),
    OUTPUT,
    argument(
        "--ct_dir",
        "the CT that were translated, <case>.nii.gz, to measure contour fidelity; default: not measured",
    ),
    argument(
        "--mr_dir", "real MR with labels to compare with, which FID and MMD require; default: none"
    ),
    MR_PATTERN,
    argument(
        "--extractor",
        "feature extractor for FID and MMD: efficientnet_lite0 (ImageNet), or a local TorchScript file that you trust; "
        "default: neither is measured",
    ),
    flag("foreground_only", "compare bodies only"),
    OVERLAYS,
    INFERENCE,
    BUNDLE,
)
def _quality(
    folder: str, output_dir: str, extractor: str | None, settings: list[str], **options: Any
) -> None:
    from contourdiff_lab.folder_quality import folder_quality, write_quality
    from contourdiff_lab.metrics.image_quality import named_extractor

    if extractor is not None:
        options["extractor"], options["extractor_name"] = named_extractor(extractor)
    quality = folder_quality(folder, **options, settings=parse_settings(settings))
    write_quality(quality, output_dir)
    of_set = quality["set"] or {}
    print_values({**quality["mean"], **of_set})


@LAB.command(
    "paired",
    "register CT and real MR of one person, and compare translations of the CT with the MR",
    argument("ct", "the CT"),
    argument(
        "label", "labels on its grid, whose boundary measures the residual of the registration"
    ),
    argument("mr", "real MR of the same person"),
    OUTPUT,
    several("translations", "translations of the CT, on its grid", "NAME=FILE"),
    argument("--others", "folder of single slices of other people, for comparison; default: none"),
    argument(
        "--start_mm",
        "shift of the CT to the left, to the back and to the head from where both centers coincide; default: 0 0 0",
        nargs=3,
        type=float,
        default=[0.0, 0.0, 0.0],
        metavar=("L", "P", "S"),
    ),
)
def _paired(translations: list[str], **options: Any) -> None:
    from contourdiff_lab.paired_truth import compare_with_real_mr

    path = compare_with_real_mr(translations=pairs_of(translations), **options)
    sys.stdout.write(f"{path}\n")


def _passed(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are on the command line: without ``None`` and empty settings."""
    return {name: value for name, value in options.items() if value not in (None, {})}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see [`contourdiff.cli.program.Program.main`][]."""
    LAB.main(arguments)
