# SPDX-License-Identifier: Apache-2.0
"""Command line: ``contourdiff example | phantom | translate | agreement | curve | steps | table | quality | gap``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import yaml

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run; errors of the input end with one line and status 1."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        _COMMANDS[command](**options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def _example(folder: str, bundle: str | None) -> None:
    from contourdiff.bundle import run_example

    output_dir = run_example(folder, bundle)
    sys.stdout.write(
        f"\nCT, label and affine of the phantom: {folder}/ct\n"
        f"translated MR: {output_dir}/phantom_mr.nii.gz\n"
        f"picture to look at: {output_dir}/phantom_mr.png\n"
    )


def _phantom(folder: str, seed: int) -> None:
    from contourdiff.phantom import write_phantom

    sys.stdout.write(f"{write_phantom(folder, seed=seed)}\n")


def _translate(dataset_dir: str, output_dir: str, bundle: str | None, overlays: list[str], settings: list[str]) -> None:
    from contourdiff.bundle import translate

    translate(dataset_dir, output_dir, bundle=bundle, overlays=overlays, **_settings(settings))


def _agreement(weights: str, output_dir: str, bundle: str | None, settings: list[str]) -> None:
    from contourdiff.bundle import find_bundle
    from contourdiff.evaluation.held_out import evaluate_bundle

    train_config = str(find_bundle(bundle) / "configs" / "train.json")
    summary = evaluate_bundle(train_config, weights, output_dir, **_settings(settings))
    for name, value in summary.items():
        sys.stdout.write(f"{name}: {value}\n")


def _steps(weights: str, output_dir: str, bundle: str | None, **options: Any) -> None:
    from contourdiff.bundle import find_bundle
    from contourdiff.evaluation.solver_comparison import compare_solvers

    train_config = str(find_bundle(bundle) / "configs" / "train.json")
    overrides = _settings(options.pop("settings"))
    sys.stdout.write(compare_solvers(train_config, weights, output_dir, **options, **overrides))


def _curve(log_dir: str, path: str) -> None:
    from contourdiff.evaluation.loss_curve import loss_curve

    loss_curve(log_dir, path)


def _table(smoke: bool, folders: list[str], groups: list[str], mr_training: list[str], **options: Any) -> None:
    from contourdiff.evaluation.experiment import ExperimentPlan, run_experiment

    named: dict[str, Any] = {
        "folders": _pairs(folders),
        "groups": _pairs(groups),
        "mr_training": _settings(mr_training),
    }
    for name in ("translation", "segmentation", "unconditional"):
        named[name] = _settings(options.pop(name))
    given = {name: value for name, value in (options | named).items() if value not in (None, {})}
    plan = ExperimentPlan(**given)
    sys.stdout.write(f"{run_experiment(plan.smoke() if smoke else plan)}\n")


def _quality(folder: str, output_dir: str, extractor: str | None, **options: Any) -> None:
    from contourdiff.evaluation.folder_quality import folder_quality, write_quality
    from contourdiff.metrics.image_quality import load_extractor

    if extractor is not None:
        options |= {"extractor": load_extractor(extractor), "extractor_name": extractor}
    quality = folder_quality(folder, **options)
    write_quality(quality, output_dir)
    for name, value in (quality["mean"] | (quality["set"] or {})).items():
        sys.stdout.write(f"{name}: {value}\n")


def _gap(mr_settings: list[str], settings: list[str], **options: Any) -> None:
    from contourdiff.evaluation.contour_gap_report import run_gap

    sys.stdout.write(f"{run_gap(**options, mr_settings=_settings(mr_settings), **_settings(settings))}\n")


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``["seed=1", "amp=false"]`` -> ``{"seed": 1, "amp": False}``; what is no YAML stays text."""
    return {name: _value(value) for name, value in _pairs(pairs).items()}


def _pairs(pairs: Sequence[str]) -> dict[str, str]:
    """``["t1=*_t1_*"]`` -> ``{"t1": "*_t1_*"}``."""
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"expected settings as name=value, got {wrong}")
    return dict(pair.split("=", 1) for pair in pairs)


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


_COMMANDS: dict[str, Callable[..., None]] = {
    "example": _example,
    "phantom": _phantom,
    "translate": _translate,
    "agreement": _agreement,
    "steps": _steps,
    "curve": _curve,
    "table": _table,
    "quality": _quality,
    "gap": _gap,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="contourdiff", description="Translate labelled CT into MR.")
    commands = parser.add_subparsers(dest="command", required=True)

    example = commands.add_parser("example", help="make the digital lumbar phantom and translate it")
    example.add_argument("folder", help="folder to make ct/ and mr/ in")

    phantom = commands.add_parser("phantom", help="write the digital lumbar phantom with its label")
    phantom.add_argument("folder")
    phantom.add_argument("--seed", type=int, default=0)

    translate = commands.add_parser("translate", help="translate a folder of CT volumes")
    translate.add_argument("dataset_dir")
    translate.add_argument("output_dir")
    translate.add_argument("--overlays", nargs="*", default=[], help="fast, lumbar, hip_thigh")

    agreement = commands.add_parser("agreement", help="translate the contours of held-out MR slices and compare")
    agreement.add_argument("weights")
    agreement.add_argument("output_dir")

    steps = commands.add_parser("steps", help="compare solvers and numbers of steps on held-out MR slices")
    steps.add_argument("weights")
    steps.add_argument("output_dir")
    steps.add_argument("--solvers", nargs="+", default=list(DEFAULT_SOLVERS), metavar="NAME:STEPS")
    steps.add_argument("--reference", default="ddim:200", metavar="NAME:STEPS", help="stands for the exact solution")
    steps.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    curve = commands.add_parser("curve", help="draw the loss curve of a training")
    curve.add_argument("log_dir")
    curve.add_argument("path")

    table = commands.add_parser("table", help="translate, train segmentation networks, test them on real MR")
    table.add_argument("ct_dir", help="CT with labels: <case>.nii.gz and labels/<case>.nii.gz")
    table.add_argument("mr_dir", help="real MR with labels, to test on: images/ and labels/")
    table.add_argument("output_dir")
    table.add_argument("--label_map", default=None, help="JSON file that joins the classes of CT and MR")
    table.add_argument(
        "--rows", nargs="*", help="without_adaptation unconditional single_candidate ours; all by default"
    )
    table.add_argument("--architectures", nargs="*", help="unet swin_unetr; both by default")
    table.add_argument("--seeds", nargs="*", type=int, help="0 by default")
    table.add_argument("--ckpt_path", default=None, help="weights of the translator; the bundle's without it")
    table.add_argument("--overlays", nargs="*", help="overlays of inference.json, fast by default")
    table.add_argument(
        "--smoke", action="store_true", help="everything cut short: it shows that all parts work together"
    )
    for option, metavar, text in (
        ("folders", "ROW=FOLDER", "further rows: translations made by any tool"),
        ("groups", "NAME=PATTERN", "test groups that are scored apart, by case id"),
        ("mr_training", "NAME=VALUE", "dataset_dir=..., datalist=..., file_pattern=... for the row 'unconditional'"),
        ("translation", "NAME=VALUE", "knobs of inference.json"),
        ("segmentation", "NAME=VALUE", "knobs of segmentation_train.json"),
        ("unconditional", "NAME=VALUE", "knobs of train.json for the row 'unconditional'"),
    ):
        table.add_argument(f"--{option}", nargs="*", default=[], metavar=metavar, help=text)

    quality = commands.add_parser("quality", help="flicker, label boundaries, FID and MMD of a folder of translations")
    quality.add_argument("folder", help="translations with labels")
    quality.add_argument("output_dir")
    quality.add_argument("--mr_dir", default=None, help="real MR with labels to compare with")
    quality.add_argument("--mr_pattern", default="*", help="pattern of its case ids")
    quality.add_argument("--extractor", default=None, help="feature extractor, a local TorchScript file that you trust")
    quality.add_argument("--foreground_only", action="store_true", help="compare bodies alone")

    gap = commands.add_parser("gap", help="compare the contours of CT and of MR, tissue by tissue")
    gap.add_argument("ct_dir", help="CT with labels: <case>.nii.gz and labels/<case>.nii.gz")
    gap.add_argument("mr_dir", help="real MR with labels: the same, or images/ and labels/")
    gap.add_argument("output_dir")
    gap.add_argument("--ct_pattern", default="*", help="pattern of the case ids of the CT")
    gap.add_argument("--mr_pattern", default="*", help="pattern of the case ids of the MR")
    gap.add_argument("--min_inside_cm2", type=float, default=0.0, help="leave out slices with less area inside bone")
    gap.add_argument("--label_map", default=None, help="JSON file that tells bone, in CT and in MR")
    gap.add_argument("--overlays", nargs="*", default=[], help="overlays of inference.json")
    gap.add_argument("--mr_settings", nargs="*", default=[], metavar="NAME=VALUE", help="knobs of train.json")

    for command in (example, translate, agreement, steps, table, gap):
        command.add_argument("--bundle", default=None, help="folder of the bundle, if not beside this package")
    for command in (translate, agreement, steps, gap):
        command.add_argument(
            "--settings", nargs="*", default=[], metavar="NAME=VALUE", help="knobs of the config, such as seed=1"
        )
    return parser
