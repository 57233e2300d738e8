# SPDX-License-Identifier: Apache-2.0
"""Commands from and to other programs: export, export-bundle, to-nnunet, convert."""

from __future__ import annotations

import sys
from typing import Any

from contourdiff.cli.commands import (
    BUNDLE,
    CONFIG,
    OUTPUT,
    argument,
    flag,
    given,
    parse_settings,
    print_values,
)
from contourdiff.cli.program import PROGRAM
from contourdiff.limits import SettingError


@PROGRAM.command(
    "convert",
    "convert weights of diffusers or monai-generative, and write an overlay that uses them",
    argument(
        "source", "folder of a UNet2DModel or its pipeline, or state dict of DiffusionModelUNet"
    ),
    argument("output", "weights to write, *.pt or *.safetensors; the overlay is *.json beside it"),
    argument(
        "--network_def", "JSON file with the network's arguments; default: SOURCE/config.json"
    ),
    flag("half", "write float16"),
    flag("paper_contour", "contours by OpenCV, as the paper's, and not by scikit-image"),
    argument("--spacing_mm", "pixel size of the training; default: inference.json's", type=float),
)
def _convert(source: str, output: str, **options: Any) -> None:
    from contourdiff.cli.trust import config_digest
    from contourdiff.data.atomic import read_json
    from contourdiff.deploy.convert import convert_checkpoint

    overlay = convert_checkpoint(source, output, **options)
    print_values(
        {
            "weights": output,
            "overlay": overlay,
            "trained with": read_json(overlay)["scheduler"],
            "translate with": f"--overlays {overlay} --trust-config {config_digest([overlay])}",
        }
    )


@PROGRAM.command(
    "export-bundle",
    "write a stand-alone bundle, for a zip or for MONAI's model zoo",
    OUTPUT,
    flag(
        "zoo", "write a pull request to the model zoo: less code, its format, model card, unit test"
    ),
    argument("--name", "of the bundle in the zoo; default: contourdiff_ct2mr"),
    argument(
        "--files_url",
        "public address of the files above 1 MB, for large_files.yml; default: one to replace",
    ),
    BUNDLE,
)
def _export_bundle(output_dir: str, bundle: str | None, zoo: bool, **options: Any) -> None:
    from contourdiff.deploy.bundle_export import export_bundle
    from contourdiff.deploy.zoo_export import export_to_zoo

    chosen = given(options)
    if chosen and not zoo:
        names = " and ".join(f"--{name}" for name in chosen)
        raise SettingError(f"expected --zoo with {names}, got none; add it")
    export = export_to_zoo if zoo else export_bundle
    sys.stdout.write(f"{export(output_dir, bundle, **chosen)}\n")


@PROGRAM.command(
    "export",
    "write the networks as TorchScript or ONNX files",
    OUTPUT,
    argument(
        "--format",
        "format of the files; default: onnx",
        choices=("torchscript", "onnx"),
        default="onnx",
    ),
    flag("single", "write one ONNX file that takes a contour and noise, and gives the MR"),
    argument("--steps", "evaluations of the first network in it; default: 1", type=int),
    argument("--refinement-steps", "evaluations of the second network; default: 1", type=int),
    *CONFIG,
)
def _export(
    output_dir: str, settings: list[str], overlays: list[str], bundle: str | None, **options: Any
) -> None:
    from contourdiff.deploy.network_export import export_networks
    from contourdiff.deploy.single_graph import export_single_graph

    file_format = options.pop("format")
    single = options.pop("single")
    steps = given(options)
    config = {"bundle": bundle, "overlays": overlays, **parse_settings(settings)}
    if single and file_format != "onnx":
        raise SettingError(f"expected --format onnx with --single, got {file_format}; leave it out")
    if steps and not single:
        names = " and ".join(f"--{name}" for name in steps).replace("_", "-")
        raise SettingError(f"expected --single with {names}, got none; add it")
    if single:
        if not steps:
            config["overlays"] = ["draft", *overlays]  # the weights for one step
        differences = export_single_graph(output_dir, **steps, **config)
    else:
        differences = export_networks(output_dir, file_format, **config)
    for path, difference in differences.items():
        sys.stdout.write(f"{path}: differs from the network by at most {difference:.1e}\n")


@PROGRAM.command(
    "to-nnunet",
    "write translations as training data of nnU-Net",
    argument("dataset_dir", "folders of translations with labels", nargs="+"),
    argument("output_dir", "new folder, named like Dataset001_Name"),
    argument("--label_map", "JSON file of the classes; default: vertebrae"),
    BUNDLE,
)
def _to_nnunet(
    dataset_dir: list[str], output_dir: str, label_map: str | None, bundle: str | None
) -> None:
    from contourdiff.bundle import find_bundle
    from contourdiff.deploy.nnunet import write_nnunet

    label_map = label_map or str(find_bundle(bundle) / "label_maps" / "vertebrae.json")
    sys.stdout.write(f"{write_nnunet(dataset_dir, output_dir, label_map)}\n")
