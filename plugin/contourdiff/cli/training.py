# SPDX-License-Identifier: Apache-2.0
"""Commands of a training: train, curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contourdiff.cli.commands import (
    BUNDLE,
    DEVICE,
    OUTPUT,
    argument,
    flag,
    given,
    pairs_of,
    parse_settings,
    several,
)
from contourdiff.cli.program import PROGRAM


@PROGRAM.command(
    "train",
    "train a translator on MR images, without labels and without CT",
    argument("mr_dir", "folder of MR images (NIfTI)"),
    OUTPUT,
    argument(
        "--datalist", "CSV or JSON file in MR_DIR with the split; default: one in ten validates"
    ),
    several("contrasts", "contrasts of the network, with patterns of their files", "NAME=PATTERN"),
    argument("--weights", "weights to start from; default: random ones"),
    DEVICE,
    flag("resume", "go on from the last checkpoint in OUTPUT_DIR"),
    several("overlays", "overlays of train.json, such as train_single or train_refiner", "NAME"),
    several("settings", "settings of train.json, such as max_epochs=200"),
    BUNDLE,
    examples="""examples:
  contourdiff train mr weights --contrasts 't1=*_t1*' 't2=*_t2*'
  contourdiff train mr weights_refiner --overlays train_refiner
  contourdiff train mr weights_one_step --overlays train_refiner train_one_step
  contourdiff train mr weights --resume""",
)
def _train(
    mr_dir: str, output_dir: str, contrasts: list[str], settings: list[str], **options: Any
) -> None:
    from contourdiff.bundle import train
    from contourdiff.info import usable_device

    arguments = {**parse_settings(settings), **given(options)}
    if contrasts:
        arguments["contrasts"] = pairs_of(contrasts)
    if options["device"] is not None:
        arguments["device"] = usable_device(options["device"])
    if options["weights"] is not None:
        arguments["initial_weights"] = str(Path(arguments.pop("weights")).resolve())
    train(mr_dir, output_dir, **arguments)


@PROGRAM.command(
    "curve",
    "draw the loss curve of a training",
    argument("log_dir", "folder of the training"),
    argument("path", "PNG to write"),
)
def _curve(log_dir: str, path: str) -> None:
    from contourdiff.training.loss_curve import loss_curve

    loss_curve(log_dir, path)
