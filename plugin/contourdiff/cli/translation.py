# SPDX-License-Identifier: Apache-2.0
"""Commands of a translation: example, translate, info, phantom."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contourdiff.cli.commands import (
    BUNDLE,
    CONFIG,
    CT_OR_FOLDER,
    TRANSLATOR,
    argument,
    flag,
    given,
    is_quiet,
    parse_settings,
    print_values,
    uncollected,
)
from contourdiff.cli.program import PROGRAM
from contourdiff.limits import SettingError

if TYPE_CHECKING:
    from contourdiff.translation import Translation

SPEEDS = ("fast", "draft", "full")


@PROGRAM.command(
    "example",
    "create the digital lumbar phantom and translate it",
    argument("folder", "folder to write to"),
    BUNDLE,
)
def _example(folder: str, bundle: str | None) -> None:
    with uncollected():
        from contourdiff.bundle import run_example
        from contourdiff.data.case_files import CaseFiles

    files = CaseFiles(run_example(folder, bundle), "phantom")
    ct = Path(folder) / "ct"
    print_values({"CT and label": ct, "translated MR": files.mr, "picture": files.picture})


@PROGRAM.command(
    "translate",
    "translate CT to MR",
    argument("source", CT_OR_FOLDER),
    argument("output", "folder to write to, or the file of a single MR"),
    argument(
        "--label",
        "label of a single CT, or a folder of masks; default: in a folder, those in SOURCE/labels",
    ),
    argument("--contrast", "t1, t2 or t2_space, or several: t1,t2; default: t1"),
    flag("fast", "4 + 1 steps and one candidate a slice; a CPU takes it unless told otherwise"),
    flag("draft", "1 + 1 steps and one candidate a slice: a first look, grayer"),
    flag(
        "full",
        "the paper's setting: 50 + 4 steps, up to 20 candidates; a GPU takes it unless told otherwise",
    ),
    flag("outline", "add the outline of the label to the contour, for an MR with an edge there"),
    argument(
        "--seed",
        "seed of the noise; each seed gives a different MR of the same anatomy; default: 0",
        type=int,
    ),
    argument(
        "--format",
        "of the volumes in a folder; dicom writes MR and label as DICOM beside them; default: .nii.gz",
        metavar=".nrrd",
    ),
    argument("--workers", "processes that share the cases; default: 1", type=int, metavar="N"),
    *TRANSLATOR,
    argument("--bids", "BIDS derivative dataset to write, too; default: none", metavar="FOLDER"),
    argument("--stats", "table of the cases (.csv, .parquet); default: none", metavar="FILE"),
    flag("overwrite", "translate again what is there"),
    flag("json", "print the results as JSON"),
    *CONFIG,
    examples="""examples:
  contourdiff translate ct.nii.gz mr.nii.gz              one file
  contourdiff translate ct mr --contrast t1,t2           a folder, with the labels in ct/labels
  contourdiff translate dicom mr                         a DICOM folder; writes the CT as NIfTI, too
  contourdiff translate dicom mr --format dicom          and the MR as DICOM
  contourdiff translate ct.nrrd ct_mr.nrrd --label seg.nrrd
  contourdiff translate ct mr --settings distance_threshold=1500 save_fidelity_map=true""",
)
def _translate(source: str, output: str, json: bool, settings: list[str], **options: Any) -> None:
    with uncollected():
        from contourdiff.translation import translate_path

    quiet = is_quiet()
    arguments = {"progress": not quiet, **parse_settings(settings), **speed_of(options)}
    try:
        results = translate_path(source, output, **arguments)
    except (ValueError, OSError, ImportError) as error:
        if json:
            results = getattr(error, "results", [])
            _print_json({"error": str(error), "results": [_entry(result) for result in results]})
        raise
    if json:
        _print_json({"results": [_entry(result) for result in results]})
    elif not quiet:
        for result in results:
            sys.stdout.write(f"{result.case}: {result.mr}\n")


def speed_of(options: dict[str, Any]) -> dict[str, Any]:
    """The given options, with ``fast`` for the flags ``--fast`` and ``--full``."""
    arguments = given(options)
    flags = [f"--{name}" for name in SPEEDS if name in arguments]
    if len(flags) > 1:
        raise SettingError(
            f"expected one of --fast, --draft and --full, got {', '.join(flags)}; pass one"
        )
    if arguments.pop("full", False):
        arguments["fast"] = False
    return arguments


def _entry(result: Translation) -> dict[str, Any]:
    """What became of a translation: its files, and what its record says."""
    from contourdiff.data.atomic import read_json
    from contourdiff.inference.summary import measures

    entry = result._asdict()
    if result.status == "failed":
        return {**entry, **dict.fromkeys(("mr", "record", "label", "picture", "dicom"))}
    record = read_json(result.record)
    return {
        **entry,
        "contrast": record["settings"].get("contrast"),
        "fidelity": measures(record)["fidelity"],
        "warnings": record["warnings"],
    }


def _print_json(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values, indent=2, default=str) + "\n")


@PROGRAM.command("info", "print versions, devices and weights", BUNDLE)
def _info(bundle: str | None) -> None:
    from contourdiff.info import installation

    print_values(installation(bundle))


@PROGRAM.command(
    "phantom",
    "write the digital lumbar phantom",
    argument("folder", "folder to write to"),
    argument("--seed", "seed of the noise in the CT; default: 0", type=int, default=0),
)
def _phantom(folder: str, seed: int) -> None:
    from contourdiff.phantom import write_phantom

    sys.stdout.write(f"{write_phantom(folder, seed=seed)}\n")
