# SPDX-License-Identifier: Apache-2.0
"""Commands that make images and weights: example, phantom, translate, train, rival, info."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from contourdiff.cli.commands import (
    BUNDLE,
    INFERENCE,
    OUTPUT,
    OVERLAYS,
    argument,
    command,
    flag,
    given,
    pairs_of,
    parse_settings,
    print_values,
    several,
)


@command("example", "create the digital lumbar phantom and translate it", argument("folder"), BUNDLE)
def _example(folder: str, bundle: str | None) -> None:
    from contourdiff.bundle import run_example

    output_dir = run_example(folder, bundle)
    files = {"translated MR": "phantom_mr.nii.gz", "picture": "phantom_mr.png"}
    print_values({"CT and label": f"{folder}/ct", **{name: f"{output_dir}/{file}" for name, file in files.items()}})


@command("phantom", "write the digital lumbar phantom", argument("folder"), argument("--seed", type=int, default=0))
def _phantom(folder: str, seed: int) -> None:
    from contourdiff.phantom import write_phantom

    sys.stdout.write(f"{write_phantom(folder, seed=seed)}\n")


@command(
    "translate",
    "translate CT to MR",
    argument("input", "a CT file, a folder of CT files, DICOM or a BIDS dataset, a datalist (CSV, JSON), or a URL"),
    argument("output", "folder to write to, or the file of a single MR"),
    argument("--label", "label of a single CT; those of a folder are in INPUT/labels"),
    argument("--contrast", "t1, t2, or t1,t2 for both; default: t1"),
    argument("--anatomy", "settings of the paper for an anatomy; default: lumbar", choices=["lumbar", "hip_thigh"]),
    flag("fast", "15 steps and one candidate a slice: for CPUs, and for a first look"),
    argument("--weights", "weights of your own, for the network of the bundle"),
    argument("--device", "cpu, cuda, cuda:1; default: a GPU if there is one"),
    argument("--seed", "another seed is another MR of the same anatomy; default: 0", type=int),
    argument("--series", "SeriesInstanceUID, for a DICOM folder with several CT series", metavar="UID"),
    argument("--format", "of the MR and its label in a folder; default: .nii.gz", metavar=".nrrd"),
    argument("--workers", "processes on this machine that share the cases", type=int, metavar="N"),
    argument("--scheduler", "address of a Dask scheduler whose workers share the cases", metavar="tcp://HOST:8786"),
    argument("--bids", "folder of a BIDS derivative dataset to write, too", metavar="FOLDER"),
    argument("--stats", "table to write, a line for each case (.csv, .parquet)", metavar="FILE"),
    flag("overwrite", "translate again what is there"),
    flag("json", "print the results as JSON"),
    OVERLAYS,
    INFERENCE,
    BUNDLE,
    examples="""examples:
  contourdiff translate ct.nii.gz mr.nii.gz --fast       one file
  contourdiff translate ct mr --contrast t1,t2           a folder, with the labels in ct/labels
  contourdiff translate dicom mr                         a DICOM folder; writes the CT as NIfTI, too
  contourdiff translate ct.nrrd mr.nrrd --label seg.nrrd
  contourdiff translate ct mr --settings distance_threshold=1500 save_fidelity_map=true""",
)
def _translate(input: str, output: str, json: bool, settings: list[str], **options: Any) -> None:  # noqa: A002
    from contourdiff.translation import translate_path

    quiet = logging.getLogger("contourdiff").level > logging.INFO
    options = given(options)
    try:
        results = translate_path(input, output, **{"progress": not quiet, **parse_settings(settings), **options})
    except ValueError as error:
        if json:
            _print_json({"error": str(error)})
        raise
    if json:
        _print_json({"results": [result._asdict() for result in results]})
    elif not quiet:
        print_values({result.case: result.mr for result in results})


def _print_json(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values, indent=2, default=str) + "\n")


@command(
    "train",
    "train a translator on MR images, without labels and without CT",
    argument("mr_dir", "folder of MR images (NIfTI)"),
    OUTPUT,
    argument("--datalist", "CSV or JSON file that assigns images to training and validation, relative to MR_DIR"),
    several("contrasts", "contrasts of one network, and the patterns of their files", "NAME=PATTERN"),
    argument("--weights", "weights to start from"),
    argument("--device", "cpu, cuda, cuda:1; default: a GPU if there is one"),
    flag("resume", "go on from the last checkpoint in OUTPUT_DIR"),
    several("overlays", "overlays of train.json, such as train_single or train_refiner", "NAME"),
    several("settings", "settings of train.json, such as max_epochs=200"),
    BUNDLE,
    examples="""examples:
  contourdiff train mr weights --contrasts 't1=*_t1*' 't2=*_t2*'
  contourdiff train mr weights_refiner --overlays train_refiner
  contourdiff train mr weights --resume""",
)
def _train(mr_dir: str, output_dir: str, contrasts: list[str], settings: list[str], **options: Any) -> None:
    from contourdiff.bundle import train
    from contourdiff.installation import usable_device

    options = given(options)
    if contrasts:
        options["contrasts"] = pairs_of(contrasts)
    if "device" in options:
        options["device"] = usable_device(options["device"])
    if "weights" in options:
        options["initial_weights"] = str(Path(options.pop("weights")).resolve())
    train(mr_dir, output_dir, **parse_settings(settings), **options)


@command(
    "rival",
    "train a method to compare with on unpaired CT and MR, and translate the CT with it",
    argument("method", "cyclegan, synseg, cycada or maskgan"),
    argument("ct_dir", "CT: <case>.nii.gz, and labels/<case>.nii.gz for the methods that use labels"),
    argument("mr_dir", "folder of MR images (NIfTI)"),
    OUTPUT,
    argument("--label_map", "JSON file that joins the classes of CT and MR; default: vertebrae"),
    argument("--datalist", "CSV or JSON file that assigns images to training and validation, relative to MR_DIR"),
    argument("--pattern", "keep MR files whose path in MR_DIR matches", metavar="'t1/*'"),
    argument("--minutes", "end the training after this time; resumed parts count", type=float),
    argument("--seed", "default: 0", type=int),
    argument("--device", "cpu, cuda, cuda:1; default: a GPU if there is one"),
    several("settings", "settings of cyclegan.json, such as generator_blocks=6"),
    BUNDLE,
    examples="""examples:
  contourdiff rival cyclegan ct mr rivals/cyclegan --minutes 120
  contourdiff rival cyclegan ct mr rivals/cyclegan --settings generator_channels=32 generator_blocks=6 amp=true
The same command goes on where it stopped. The MR is in OUTPUT_DIR/translations.""",
)
def _rival(
    method: str, ct_dir: str, mr_dir: str, output_dir: str, bundle: str | None, settings: list[str], **options: Any
) -> None:
    from contourdiff.rivals.training import train_rival, translate_with_rival

    options = given({"file_pattern": options.pop("pattern"), **options})
    train_rival(method, ct_dir, mr_dir, output_dir, bundle=bundle, **{**parse_settings(settings), **options})
    device = {name: value for name, value in options.items() if name == "device"}
    translations = translate_with_rival(output_dir, ct_dir, Path(output_dir) / "translations", bundle=bundle, **device)
    print_values({"weights": f"{output_dir}/generator.pt", "translations": translations})


@command("info", "print versions, devices and weights", BUNDLE)
def _info(bundle: str | None) -> None:
    from contourdiff.installation import installation

    print_values(installation(bundle))
