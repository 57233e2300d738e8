# SPDX-License-Identifier: Apache-2.0
"""Command of training pairs: pairs."""

from __future__ import annotations

import sys
from typing import Any

from contourdiff.cli.commands import (
    CONFIG,
    CT_OR_FOLDER,
    SHAPES,
    TRANSLATOR,
    argument,
    flag,
    is_quiet,
    parse_settings,
)
from contourdiff.cli.program import PROGRAM
from contourdiff.cli.translation import speed_of


@PROGRAM.command(
    "pairs",
    "make training pairs for a segmentation network from labelled CT",
    argument("source", CT_OR_FOLDER),
    argument("output_dir", "folder to write to"),
    argument("--label", "label of a single CT, or a folder of masks; default: SOURCE/labels"),
    *SHAPES,
    *TRANSLATOR,
    argument(
        "--contrast", "t1, t2 or t2_space, or several: t1,t2; default: all contrasts of the network"
    ),
    argument("--seed", "seed of warps and noise; default: 0", type=int),
    argument(
        "--outline-probability",
        "share of the shapes whose contour gets the outline of the label; default: 0.5",
        type=float,
    ),
    argument("--rotation-degrees", "largest angle about each axis; default: 8", type=float),
    argument("--scale", "largest change of the size along each axis; default: 0.1", type=float),
    argument("--elastic-mm", "largest shift of a control point, mm; default: 5", type=float),
    argument(
        "--margin-mm",
        "slices that are farther from the label are left out, mm; default: 15",
        type=float,
    ),
    argument("--label-map", "JSON file of classes that the labels become; default: none"),
    flag("fast", "4 + 1 steps and one candidate a slice, instead of 1 + 1 steps"),
    flag("full", "the paper's setting, instead of 1 + 1 steps"),
    *CONFIG,
    examples="""examples:
  contourdiff pairs ct pairs                             a folder, with the labels in ct/labels
  contourdiff pairs ct.nii.gz pairs --label seg.nii.gz --shapes 16 --contrast t2
  contourdiff to-nnunet pairs Dataset001_Spine""",
)
def _pairs(source: str, output_dir: str, settings: list[str], **options: Any) -> None:
    from contourdiff.pairs import make_pairs

    quiet = is_quiet()
    arguments = {"progress": not quiet, **parse_settings(settings), **speed_of(options)}
    folder = make_pairs(source, output_dir, **arguments)
    if not quiet:
        sys.stdout.write(f"{folder}\n")
