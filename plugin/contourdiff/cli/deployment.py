# SPDX-License-Identifier: Apache-2.0
"""Commands that bring the bundle and its networks elsewhere: export-bundle, export."""

from __future__ import annotations

import sys
from typing import Any

from contourdiff.cli.commands import BUNDLE, INFERENCE, OUTPUT, OVERLAYS, argument, command, parse_settings


@command("export-bundle", "write a stand-alone bundle, for the model zoo or a zip", OUTPUT, BUNDLE)
def _export_bundle(output_dir: str, bundle: str | None) -> None:
    from contourdiff.deploy.bundle_export import export_bundle

    sys.stdout.write(f"{export_bundle(output_dir, bundle)}\n")


@command(
    "export",
    "write the networks as TorchScript or ONNX files",
    OUTPUT,
    argument("--format", "default: onnx", choices=("torchscript", "onnx"), default="onnx"),
    OVERLAYS,
    INFERENCE,
    BUNDLE,
)
def _export(output_dir: str, settings: list[str], **options: Any) -> None:
    from contourdiff.deploy.network_export import export_networks

    differences = export_networks(output_dir, options.pop("format"), **options, **parse_settings(settings))
    for path, difference in differences.items():
        sys.stdout.write(f"{path}: differs from the network by at most {difference:.1e}\n")


@command(
    "to-nnunet",
    "write translations as training data of nnU-Net",
    argument("dataset_dir", "folders of translations with labels", nargs="+"),
    argument("output_dir", "new folder, named like Dataset001_Name"),
    argument("--label_map", "JSON file of the classes; default: vertebrae"),
    BUNDLE,
)
def _to_nnunet(dataset_dir: list[str], output_dir: str, label_map: str | None, bundle: str | None) -> None:
    from contourdiff.bundle import find_bundle
    from contourdiff.deploy.nnunet import write_nnunet

    label_map = label_map or str(find_bundle(bundle) / "label_maps" / "vertebrae.json")
    sys.stdout.write(f"{write_nnunet(dataset_dir, output_dir, label_map)}\n")
