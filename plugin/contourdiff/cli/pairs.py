# SPDX-License-Identifier: Apache-2.0
"""Command of training pairs: pairs."""

from __future__ import annotations

import logging
import sys
from typing import Any

from contourdiff.cli.commands import (
    BUNDLE,
    DEVICE,
    INFERENCE,
    OVERLAYS,
    argument,
    flag,
    parse_settings,
)
from contourdiff.cli.program import PROGRAM
from contourdiff.cli.translation import ANATOMIES, speed_of


@PROGRAM.command(
    "pairs",
    "make training pairs for a segmentation network from labelled CT",
    argument("source", "CT file, folder of CT, DICOM or BIDS, datalist (CSV, JSON), or a URL"),
    argument("output_dir", "folder to write to"),
    argument("--label", "label of a single CT, or a folder of masks; default: SOURCE/labels"),
    argument("--shapes", "shapes of each CT, the first of them unwarped; default: 8", type=int),
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
    argument("--anatomy", "the paper's settings for it; default: lumbar", choices=ANATOMIES),
    flag("fast", "4 + 1 steps and one candidate a slice, instead of 1 + 1 steps"),
    flag("full", "the paper's setting, instead of 1 + 1 steps"),
    argument("--weights", "weights for the network of the bundle; default: the bundle's"),
    DEVICE,
    argument("--series", "UID of one of several CT series; default: the only one", metavar="UID"),
    argument("--workers", "processes that share the shapes; default: 1", type=int, metavar="N"),
    argument(
        "--scheduler", "Dask scheduler of such workers; default: none", metavar="tcp://HOST:PORT"
    ),
    OVERLAYS,
    INFERENCE,
    BUNDLE,
    examples="""examples:
  contourdiff pairs ct pairs                             a folder, with the labels in ct/labels
  contourdiff pairs ct.nii.gz pairs --label seg.nii.gz --shapes 16 --contrast t2
  contourdiff to-nnunet pairs Dataset001_Spine""",
)
def _pairs(source: str, output_dir: str, settings: list[str], **options: Any) -> None:
    from contourdiff.logs import silence_itk
    from contourdiff.pairs import make_pairs

    silence_itk()
    quiet = logging.getLogger("contourdiff").level > logging.INFO
    arguments = {"progress": not quiet, **parse_settings(settings), **speed_of(options)}
    folder = make_pairs(source, output_dir, **arguments)
    if not quiet:
        sys.stdout.write(f"{folder}\n")
