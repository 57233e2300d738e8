# SPDX-License-Identifier: Apache-2.0
"""Commands of the lab: table, baseline, agreement, steps, quality, gap."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contourdiff.cli.commands import (
    BUNDLE,
    INFERENCE,
    OUTPUT,
    OVERLAYS,
    TRAIN,
    argument,
    given,
    pairs_of,
    parse_settings,
    print_values,
    several,
)
from contourdiff.cli.program import Program

LAB = Program("contourdiff-lab", "Compare and investigate translations of CT into MR.")

DEFAULT_ROWS = "without_adaptation unconditional single_candidate ours ours_t1_t2"
FURTHER_ROWS = "randomized cyclegan synseg cycada maskgan upper_bound"
DEFAULT_SOLVERS = (
    "ddim:50",
    "ddim:15",
    "ddim:20",
    "ddim:25",
    *(f"dpm_solver:{steps}" for steps in (10, 15, 20, 25)),
)
TRANSLATION = several("translation", "settings of inference.json, such as contrast=t2")
CT_DIR = argument("ct_dir", "CT with labels: <case>.nii.gz and labels/<case>.nii.gz")
LABEL_MAP = argument(
    "--label_map", "JSON file that joins the classes of CT and MR; default: vertebrae"
)
MR_PATTERN = argument("--mr_pattern", "pattern of the case ids of the MR", default="*")


@LAB.command(
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
def _agreement(
    weights: str, output_dir: str, tolerance_px: float, settings: list[str], **translation: Any
) -> None:
    from contourdiff_lab.held_out import evaluate_bundle

    configs, options = _held_out_options(**translation)
    options |= {"tolerance_px": tolerance_px}
    print_values(
        evaluate_bundle(configs, weights, output_dir, **options, **parse_settings(settings))
    )


@LAB.command(
    "steps",
    "compare solvers and numbers of steps on held-out MR slices",
    argument("weights"),
    OUTPUT,
    argument("--solvers", nargs="+", default=list(DEFAULT_SOLVERS), metavar="NAME:STEPS"),
    argument(
        "--reference", "stands for the exact solution", default="ddim:200", metavar="NAME:STEPS"
    ),
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
    from contourdiff_lab.solver_comparison import compare_solvers

    configs, options = _held_out_options(**translation)
    options |= {"solvers": solvers, "reference": reference, "seeds": seeds}
    sys.stdout.write(
        compare_solvers(configs, weights, output_dir, **options, **parse_settings(settings))
    )


def _held_out_options(
    bundle: str | None, overlays: list[str], translation: list[str]
) -> tuple[list[str], Any]:
    """Files of the training config, and how the held-out slices are translated."""
    from contourdiff.bundle import config_files, training_overlays

    options = {
        "inference": config_files(bundle, overlays),
        "translation": parse_settings(translation),
    }
    return config_files(bundle, training_overlays(bundle, overlays), base="train"), options


@LAB.command(
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
    argument(
        "--patient_pattern", "finds the patient of a test case, for intervals: 'spider_([0-9]+)'"
    ),
    argument("--ckpt_path", "weights of the translator; default: the bundle's"),
    argument("--overlays", "overlays of inference.json; default: fast", nargs="*", metavar="NAME"),
    argument(
        "--smoke",
        "cut everything short, to check that all parts work together",
        action="store_true",
    ),
    several("folders", "further rows: translations by any tool", "ROW=FOLDER"),
    several("groups", "test groups that are scored separately, by case id", "NAME=PATTERN"),
    several(
        "mr_training",
        "dataset_dir=..., datalist=..., file_pattern=... for 'unconditional' and the baselines",
    ),
    several("translation", "settings of inference.json"),
    several("segmentation", "settings of segmentation_train.json"),
    several("unconditional", "settings of train.json for the row 'unconditional'"),
    several("baselines", "settings of cyclegan.json for the baselines, such as minutes=30"),
    BUNDLE,
)
def _table(smoke: bool, folders: list[str], groups: list[str], **options: Any) -> None:
    from contourdiff_lab.experiment.plan import ExperimentPlan
    from contourdiff_lab.experiment.run import run_experiment

    named: dict[str, Any] = {"folders": pairs_of(folders), "groups": pairs_of(groups)}
    settings = ("mr_training", "translation", "segmentation", "unconditional", "baselines")
    named |= {name: parse_settings(options.pop(name)) for name in settings}
    plan = ExperimentPlan(
        **{name: value for name, value in (options | named).items() if value not in (None, {})}
    )
    sys.stdout.write(f"{run_experiment(plan.smoke() if smoke else plan)}\n")


@LAB.command(
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
def _quality(
    folder: str, output_dir: str, extractor: str | None, settings: list[str], **options: Any
) -> None:
    from contourdiff_lab.folder_quality import folder_quality, write_quality
    from contourdiff_lab.metrics.image_quality import load_extractor

    if extractor is not None:
        options |= {"extractor": load_extractor(extractor), "extractor_name": extractor}
    quality = folder_quality(folder, **options, settings=parse_settings(settings))
    write_quality(quality, output_dir)
    print_values(quality["mean"] | (quality["set"] or {}))


@LAB.command(
    "gap",
    "compare the contours of CT and of MR, tissue by tissue",
    CT_DIR,
    argument("mr_dir", "real MR with labels: the same, or images/ and labels/"),
    OUTPUT,
    argument("--ct_pattern", "pattern of the case ids of the CT", default="*"),
    MR_PATTERN,
    argument(
        "--min_inside_cm2", "leave out slices with less area inside bone", type=float, default=0.0
    ),
    LABEL_MAP,
    several("mr_settings", "settings of train.json"),
    OVERLAYS,
    INFERENCE,
    BUNDLE,
)
def _gap(mr_settings: list[str], settings: list[str], **options: Any) -> None:
    from contourdiff_lab.contour_gap_report import run_gap

    path = run_gap(**options, mr_settings=parse_settings(mr_settings), **parse_settings(settings))
    sys.stdout.write(f"{path}\n")


@LAB.command(
    "baseline",
    "train a method to compare with on unpaired CT and MR, and translate the CT with it",
    argument("method", "cyclegan, synseg, cycada or maskgan"),
    argument(
        "ct_dir", "CT: <case>.nii.gz, and labels/<case>.nii.gz for the methods that use labels"
    ),
    argument("mr_dir", "folder of MR images (NIfTI)"),
    OUTPUT,
    argument("--label_map", "JSON file that joins the classes of CT and MR; default: vertebrae"),
    argument(
        "--datalist",
        "CSV or JSON file that assigns images to training and validation, relative to MR_DIR",
    ),
    argument("--pattern", "keep MR files whose path in MR_DIR matches", metavar="'t1/*'"),
    argument("--minutes", "end the training after this time; resumed parts count", type=float),
    argument("--seed", "default: 0", type=int),
    argument("--device", "cpu, cuda, cuda:1; default: a GPU if there is one"),
    several("settings", "settings of cyclegan.json, such as generator_blocks=6"),
    BUNDLE,
    examples="""examples:
  contourdiff baseline cyclegan ct mr baselines/cyclegan --minutes 120
  contourdiff baseline cyclegan ct mr baselines/cyclegan --settings generator_channels=32 generator_blocks=6 amp=true
The same command goes on where it stopped. The MR is in OUTPUT_DIR/translations.""",
)
def _baseline(
    method: str,
    ct_dir: str,
    mr_dir: str,
    output_dir: str,
    bundle: str | None,
    settings: list[str],
    **options: Any,
) -> None:
    from contourdiff_lab.baselines.training import train_baseline, translate_with_baseline

    options = given({"file_pattern": options.pop("pattern"), **options})
    train_baseline(
        method, ct_dir, mr_dir, output_dir, bundle=bundle, **{**parse_settings(settings), **options}
    )
    device = {name: value for name, value in options.items() if name == "device"}
    translations = translate_with_baseline(
        output_dir, ct_dir, Path(output_dir) / "translations", bundle=bundle, **device
    )
    print_values({"weights": f"{output_dir}/generator.pt", "translations": translations})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see [`contourdiff.cli.program.Program.main`][]."""
    LAB.main(arguments)
