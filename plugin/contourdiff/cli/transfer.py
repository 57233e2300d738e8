# SPDX-License-Identifier: Apache-2.0
"""Commands from labelled CT to segmented MR: transfer, segment."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from contourdiff.cli.commands import (
    ANATOMY,
    BUNDLE,
    CT_OR_FOLDER,
    DEVICE,
    SHAPES,
    argument,
    flag,
    given,
    is_quiet,
    pairs_of,
    parse_settings,
    several,
)
from contourdiff.cli.program import PROGRAM


@PROGRAM.command(
    "transfer",
    "make a segmentation network for MR from labelled CT and unlabelled MR",
    argument("ct", CT_OR_FOLDER),
    argument("mr", "MR (NIfTI) or folder of such; labels in MR/labels are used to score alone"),
    argument("output_dir", "folder of pairs, model and report"),
    argument("--label", "label of a single CT, or a folder of masks; default: CT/labels"),
    argument("--label-map", "JSON file of classes; default: every label value is a class"),
    several("classes", "classes, each with its label values", "NAME=27-50,60"),
    argument(
        "--preset", "size of the network; default: that of the device", choices=("cpu", "gpu")
    ),
    argument("--steps", "steps of the training; default: those of the preset", type=int),
    argument("--minutes", "minutes of the training, instead of steps; default: none", type=float),
    argument(
        "--networks",
        "networks to train; of several the first is then trained further, on MR with labels on which they agree; "
        "default: 1",
        type=int,
    ),
    *SHAPES,
    argument(
        "--contrast",
        "t1, t2 or t2_space, or several: t1,t2; default: all contrasts of the translator",
    ),
    ANATOMY,
    argument("--seed", "seed of pairs and training; default: 0", type=int),
    DEVICE,
    several("settings", "other settings of the pairs, such as elastic_mm=3"),
    BUNDLE,
    examples="""examples:
  contourdiff transfer ct mr out --classes vertebra=27-50 --bone vertebra
  contourdiff transfer ct mr out --minutes 60            the same command goes on where it was interrupted
  contourdiff segment out/model other_mr results""",
)
def _transfer(
    ct: str,
    mr: str,
    output_dir: str,
    classes: list[str],
    settings: list[str],
    **options: Any,
) -> None:
    from contourdiff.segmentation import transfer

    arguments = {"progress": not is_quiet(), **parse_settings(settings), **given(options)}
    command = shlex.join(["contourdiff", *sys.argv[1:]])
    model = transfer(ct, mr, output_dir, classes=pairs_of(classes), command=command, **arguments)
    sys.stdout.write(f"{model}\n")


@PROGRAM.command(
    "segment",
    "segment MR by the bundle of a segmentation network",
    argument("model", "folder of the bundle, such as OUT/model of a transfer"),
    argument("mr", "MR (NIfTI) or folder of such"),
    argument("output_dir", "folder of <case>_seg.nii.gz"),
    DEVICE,
    flag("overwrite", "segment again what the same weights have segmented"),
    several("settings", "settings of the bundle's inference.json, such as largest_component=true"),
)
def _segment(model: str, mr: str, output_dir: str, settings: list[str], **options: Any) -> None:
    from contourdiff.segmentation import segment

    for path in segment(model, mr, Path(output_dir), **parse_settings(settings), **given(options)):
        sys.stdout.write(f"{path}\n")
