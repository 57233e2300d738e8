# SPDX-License-Identifier: Apache-2.0
"""Command line of contourdiff: each command's name, arguments and help stand together."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fire.parser import DefaultParseValue

from contourdiff import __version__

DEFAULT_SOLVERS = ("ddim:50", "ddim:15", "ddim:20", "ddim:25", *(f"dpm_solver:{steps}" for steps in (10, 15, 20, 25)))
Argument = tuple[str, dict[str, Any]]
COMMANDS: dict[str, tuple[Callable[..., None], str, tuple[Argument, ...]]] = {}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run; an error of the input ends with one line and status 1."""
    values = vars(_parser().parse_args(arguments))
    run = COMMANDS[values.pop("command")][0]
    try:
        run(**values)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error


def parse_value(text: str) -> Any:
    """Value of a setting as ``monai.bundle`` parses it, plus JSON's ``true``, ``false`` and ``null``.

    Example:
        >>> [parse_value(text) for text in ("1e-4", "8", "false", "[1, 2]", "0010", "1:30", "ddim")]
        [0.0001, 8, False, [1, 2], '0010', '1:30', 'ddim']
    """
    try:
        return json.loads(text)
    except ValueError:
        return DefaultParseValue(text)


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``["seed=1", "amp=false"]`` -> ``{"seed": 1, "amp": False}``."""
    return {name: parse_value(value) for name, value in _pairs(pairs).items()}


def _pairs(pairs: Sequence[str]) -> dict[str, str]:
    """``["t1=*_t1_*"]`` -> ``{"t1": "*_t1_*"}``."""
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"expected settings as name=value, got {wrong}")
    return dict(pair.split("=", 1) for pair in pairs)


def _argument(name: str, text: str | None = None, **options: Any) -> Argument:
    return name, {"help": text, **options}


def _several(name: str, text: str, metavar: str = "NAME=VALUE") -> Argument:
    return _argument(f"--{name}", text, nargs="*", default=[], metavar=metavar)


OUTPUT = _argument("output_dir", "folder to write to")
BUNDLE = _argument("--bundle", "folder of the bundle, if not beside this package")
OVERLAYS = _several("overlays", "overlays of inference.json, such as fast, or paths of others", "NAME")
INFERENCE = _several("settings", "settings of inference.json, such as seed=1")
TRANSLATION = _several("translation", "settings of inference.json, such as contrast=t2")
TRAIN = _several("settings", "settings of train.json, such as dataset_dir=mr")
CT_DIR = _argument("ct_dir", "CT with labels: <case>.nii.gz and labels/<case>.nii.gz")
LABEL_MAP = _argument("--label_map", "JSON file that joins the classes of CT and MR; default: vertebrae")
MR_PATTERN = _argument("--mr_pattern", "pattern of the case ids of the MR", default="*")


def _command(name: str, text: str, *arguments: Argument) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command; its parameters are the names of the arguments."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        COMMANDS[name] = function, text, arguments
        return function

    return register


@_command("example", "create the digital lumbar phantom and translate it", _argument("folder"), BUNDLE)
def _example(folder: str, bundle: str | None) -> None:
    from contourdiff.bundle import run_example

    output_dir = run_example(folder, bundle)
    files = {"translated MR": "phantom_mr.nii.gz", "picture": "phantom_mr.png"}
    _print({"\nCT and label": f"{folder}/ct", **{name: f"{output_dir}/{file}" for name, file in files.items()}})


@_command("phantom", "write the digital lumbar phantom", _argument("folder"), _argument("--seed", type=int, default=0))
def _phantom(folder: str, seed: int) -> None:
    from contourdiff.phantom import write_phantom

    sys.stdout.write(f"{write_phantom(folder, seed=seed)}\n")


@_command(
    "translate", "translate a folder of CT volumes", _argument("dataset_dir"), OUTPUT, OVERLAYS, INFERENCE, BUNDLE
)
def _translate(dataset_dir: str, output_dir: str, bundle: str | None, overlays: list[str], settings: list[str]) -> None:
    from contourdiff.bundle import translate

    translate(dataset_dir, output_dir, bundle=bundle, overlays=overlays, **parse_settings(settings))


@_command(
    "agreement",
    "translate held-out MR slices from their contours",
    _argument("weights"),
    OUTPUT,
    _argument("--tolerance_px", "distance up to which contours agree", type=float, default=2.0),
    OVERLAYS,
    TRANSLATION,
    TRAIN,
    BUNDLE,
)
def _agreement(weights: str, output_dir: str, tolerance_px: float, settings: list[str], **translation: Any) -> None:
    from contourdiff.evaluation.held_out import evaluate_bundle

    configs, options = _held_out_options(**translation)
    options |= {"tolerance_px": tolerance_px}
    _print(evaluate_bundle(configs, weights, output_dir, **options, **parse_settings(settings)))


@_command(
    "steps",
    "compare solvers and numbers of steps on held-out MR slices",
    _argument("weights"),
    OUTPUT,
    _argument("--solvers", nargs="+", default=list(DEFAULT_SOLVERS), metavar="NAME:STEPS"),
    _argument("--reference", "stands for the exact solution", default="ddim:200", metavar="NAME:STEPS"),
    _argument("--seeds", nargs="+", type=int, default=[0, 1, 2]),
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


@_command(
    "convert",
    "convert weights of diffusers or monai-generative, and write an overlay that uses them",
    _argument("source", "folder of a UNet2DModel or its pipeline, or a state dict of a DiffusionModelUNet"),
    _argument("output", "weights to write, *.pt or *.safetensors; the overlay is *.json beside it"),
    _argument("--network_def", "JSON file with the arguments of the network of a state dict"),
    _argument("--half", "write float16", action="store_true"),
    _argument("--paper_contour", "contours by OpenCV, as the paper's; otherwise scikit-image", action="store_true"),
    _argument("--spacing_mm", "pixel size that the network was trained on", type=float),
)
def _convert(source: str, output: str, **options: Any) -> None:
    from contourdiff.checkpoints import convert_checkpoint

    overlay = convert_checkpoint(source, output, **options)
    scheduler = json.loads(overlay.read_text(encoding="utf-8"))["scheduler"]
    _print({"weights": output, "overlay": overlay, "trained with": scheduler})


@_command("curve", "draw the loss curve of a training", _argument("log_dir"), _argument("path", "PNG to write"))
def _curve(log_dir: str, path: str) -> None:
    from contourdiff.evaluation.loss_curve import loss_curve

    loss_curve(log_dir, path)


@_command(
    "table",
    "translate, train segmentation networks, test them on real MR",
    CT_DIR,
    _argument("mr_dir", "real MR with labels, to test on: images/ and labels/"),
    OUTPUT,
    LABEL_MAP,
    _argument("--rows", "without_adaptation unconditional single_candidate ours ours_t1_t2; default: all", nargs="*"),
    _argument("--architectures", "unet swin_unetr; default: both", nargs="*"),
    _argument("--seeds", "seeds of the training; default: 0", nargs="*", type=int),
    _argument("--translation_seeds", "seeds of the translation; default: 0", nargs="*", type=int),
    _argument("--patient_pattern", "finds the patient of a test case, for intervals: 'spider_([0-9]+)'"),
    _argument("--ckpt_path", "weights of the translator; default: the bundle's"),
    _argument("--overlays", "overlays of inference.json; default: fast", nargs="*", metavar="NAME"),
    _argument("--smoke", "cut everything short, to check that all parts work together", action="store_true"),
    _several("folders", "further rows: translations by any tool", "ROW=FOLDER"),
    _several("groups", "test groups that are scored separately, by case id", "NAME=PATTERN"),
    _several("mr_training", "dataset_dir=..., datalist=..., file_pattern=... for the row 'unconditional'"),
    _several("translation", "settings of inference.json"),
    _several("segmentation", "settings of segmentation_train.json"),
    _several("unconditional", "settings of train.json for the row 'unconditional'"),
    BUNDLE,
)
def _table(smoke: bool, folders: list[str], groups: list[str], **options: Any) -> None:
    from contourdiff.evaluation.experiment import ExperimentPlan, run_experiment

    named: dict[str, Any] = {"folders": _pairs(folders), "groups": _pairs(groups)}
    named |= {
        n: parse_settings(options.pop(n)) for n in ("mr_training", "translation", "segmentation", "unconditional")
    }
    plan = ExperimentPlan(**{name: value for name, value in (options | named).items() if value not in (None, {})})
    sys.stdout.write(f"{run_experiment(plan.smoke() if smoke else plan)}\n")


@_command(
    "quality",
    "measure flicker, label boundaries, FID and MMD of a folder of translations",
    _argument("folder", "translations with labels"),
    OUTPUT,
    _argument("--mr_dir", "real MR with labels to compare with"),
    MR_PATTERN,
    _argument("--extractor", "feature extractor, a local TorchScript file that you trust"),
    _argument("--foreground_only", "compare bodies only", action="store_true"),
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
    _print(quality["mean"] | (quality["set"] or {}))


@_command(
    "gap",
    "compare the contours of CT and of MR, tissue by tissue",
    CT_DIR,
    _argument("mr_dir", "real MR with labels: the same, or images/ and labels/"),
    OUTPUT,
    _argument("--ct_pattern", "pattern of the case ids of the CT", default="*"),
    MR_PATTERN,
    _argument("--min_inside_cm2", "leave out slices with less area inside bone", type=float, default=0.0),
    LABEL_MAP,
    _several("mr_settings", "settings of train.json"),
    OVERLAYS,
    INFERENCE,
    BUNDLE,
)
def _gap(mr_settings: list[str], settings: list[str], **options: Any) -> None:
    from contourdiff.evaluation.contour_gap_report import run_gap

    path = run_gap(**options, mr_settings=parse_settings(mr_settings), **parse_settings(settings))
    sys.stdout.write(f"{path}\n")


def _print(values: dict[str, Any]) -> None:
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in values.items()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="contourdiff", description="Translate labelled CT into MR.")
    parser.add_argument("--version", action="version", version=f"contourdiff {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, text, arguments) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        for argument, options in arguments:
            command.add_argument(argument, **options)
    return parser
