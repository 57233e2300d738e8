# SPDX-License-Identifier: Apache-2.0
"""The bundle of a segmentation network for MR: written from a template, trained, and used."""

from __future__ import annotations

import colorsys
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import torch
from monai.utils import ensure_tuple

from contourdiff.bundle import find_bundle, read_config, run_config
from contourdiff.config_checks import plain_errors
from contourdiff.data.atomic import atomic_folder, read_json, write_json, write_text
from contourdiff.data.label_map import LabelMap
from contourdiff.limits import check_choice
from contourdiff.training.handlers import CHECKPOINTS, newest_checkpoint
from contourdiff.weights import sha256_of

TEMPLATE = Path(__file__).with_name("template")
INFERENCE = "configs/inference.json"
TRAIN = "configs/train.json"
EVALUATE = "configs/evaluate.json"
METADATA = "configs/metadata.json"
FINISHED = "training.json"
"""Written beside the weights when a training has ended."""
TIMED_STEPS = 6
PACKAGES = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
SLICES = ("sagittal", "coronal", "axial")
"""By their axis in RAS."""
OF_EACH_AXIS = (
    "slice_pixdim",
    "slice_max_pixdim",
    "smoothing",
    "half_pixdim",
    "pixdim",
    "divisors",
)
"""Entries of the template's inference.json with a value between the slices, and one within them."""
LEVELS = 6
"""Levels of the larger network."""

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {INFERENCE: {}, TRAIN: {}},
    "gpu": {
        INFERENCE: {
            "batch_size": 32,
            "size_divisor": 32,
            "network_def": {
                "kernel_size": [3] * LEVELS,
                "strides": [1] + [2] * (LEVELS - 1),
                "upsample_kernel_size": [2] * (LEVELS - 1),
                "filters": [32, 64, 128, 256, 320, 320],
            },
        },
        TRAIN: {"train_batch_size": 32, "steps": 20000},
    },
}
"""What each preset changes in the configs of the template, whose own values are those of ``cpu``."""


def write_model_bundle(
    folder: str | Path,
    label_map: Mapping[str, Any],
    *,
    preset: str = "cpu",
    slice_axis: int = 0,
    bone: Sequence[int] = (),
    command: str | None = None,
    bundle: str | Path | None = None,
) -> Path:
    """Write a bundle without weights, whole or not at all.

    Args:
        folder: new or empty folder; its name is the bundle's.
        label_map: content of a file of [`contourdiff.data.label_map.LabelMap`][].
        preset: ``"cpu"``, a network of 2 M parameters; ``"gpu"``, one of 11 M.
        slice_axis: axis of the slices in RAS: 0 sagittal, 1 coronal, 2 axial.
        bone: numbers of the classes that are bone, see [`contourdiff.transforms.bone_surroundings`][].
        command: for the model card.
        bundle: of the translator, for its license, see [`contourdiff.bundle.find_bundle`][].

    Returns ``folder``. Raises ``ValueError`` for another preset, a folder with content, or a bad label map.
    """
    check_choice("preset", preset, PRESETS)
    root = find_bundle(bundle)
    with atomic_folder(folder) as aside:
        shutil.copytree(TEMPLATE, aside, dirs_exist_ok=True)
        shutil.copyfile(root / "LICENSE", aside / "LICENSE")
        write_json(aside / "label_map.json", label_map)
        classes = LabelMap(aside / "label_map.json")
        names = classes.classes
        for config, changes in PRESETS[preset].items():
            _change(aside / config, changes)
        _change(aside / INFERENCE, {"channels_out": len(names) + 1})
        _set_slice_axis(aside / INFERENCE, slice_axis)
        _change(aside / TRAIN, {"bone_classes": list(bone)})
        _change(aside / EVALUATE, _values_of(classes))
        size_divisor = read_json(aside / INFERENCE)["size_divisor"]
        _write_metadata(aside / METADATA, names, size_divisor)
        card = {
            "classes": _listed(names),
            "command": command or "contourdiff transfer CT MR OUT",
            "slices": SLICES[slice_axis],
        }
        _fill_in(aside / "docs" / "README.md", card)
        write_text(aside / "labels.ctbl", _color_table(names))
        (aside / "models").mkdir()
    return Path(folder)


def train_model(
    folder: str | Path, pairs: str | Path | Sequence[str | Path], **settings: Any
) -> Path:
    """Train the network of a bundle on a folder of pairs, unless that is finished.

    An interrupted training goes on to the same weights, from the last checkpoint.

    Args:
        folder: of [`write_model_bundle`][].
        pairs: folder of MR with labels, or several, of [`contourdiff.pairs.folder.labelled_pairs`][]; one that is
            listed twice is seen twice as often.
        settings: of the bundle's ``train.json``, such as ``steps=2000``.

    Returns the path of the weights. Raises ``ValueError`` for an unknown setting or without pairs.
    """
    models = Path(folder) / "models"
    finished = models / FINISHED
    weights = models / "model.pt"
    if finished.is_file() and weights.is_file():
        return weights
    settings = {"dataset_dir": [Path(path) for path in ensure_tuple(pairs)], **settings}
    checkpoint = newest_checkpoint(models)
    if checkpoint is not None:
        settings["resume_from"] = str(checkpoint)
    run_config("train", _training_configs(folder), settings)
    write_json(finished, {"sha256": sha256_of(weights)})
    for path in models.glob(CHECKPOINTS):
        path.unlink()
    return weights


def steps_in(
    seconds: float, folder: str | Path, pairs: str | Path, device: torch.device | str
) -> int:
    """Number of steps of training that fit into a time, by the time of the first ones; at least one.

    Reading the pairs counts.
    """
    start = time.perf_counter()
    settings = {"dataset_dir": Path(pairs), "device": torch.device(device)}
    parser = read_config(_training_configs(folder), settings)
    with plain_errors():
        network = parser.get_parsed_content("network")
        loss = parser.get_parsed_content("loss")
        inferer = parser.get_parsed_content("train#inferer")
        batches = iter(parser.get_parsed_content("train#dataloader"))
    read = time.perf_counter() - start
    for number, batch in zip(range(TIMED_STEPS), batches, strict=False):
        if number == 1:  # the first one is slower
            start = time.perf_counter()
        output = inferer(batch["image"].to(device), network)
        loss(output, batch["label"].to(device)).backward()
    seconds_a_step = (time.perf_counter() - start) / (TIMED_STEPS - 1)
    return max(1, int((seconds - read) / seconds_a_step))


def _training_configs(folder: str | Path) -> list[str]:
    root = Path(folder)
    return [str(root / INFERENCE), str(root / TRAIN)]


def _change(path: Path, changes: Mapping[str, Any]) -> None:
    """Replace entries of a config; those of a dictionary one by one.

    The lines of the template stay as they are: a config is for reading, too.
    """
    text = path.read_text(encoding="utf-8")
    config = json.loads(text)
    for name, value in changes.items():
        if isinstance(value, dict):
            for key, item in value.items():
                text = _replaced(text, key, config[name][key], item)
        else:
            text = _replaced(text, name, config[name], value)
    write_text(path, text)


def _set_slice_axis(path: Path, slice_axis: int) -> None:
    """Let a config whose slices are sagittal have others."""
    config = read_json(path)
    changes: dict[str, Any] = {"slice_axis": slice_axis}
    for name in OF_EACH_AXIS:
        between, within, _ = config[name]
        values = [within] * 3
        values[slice_axis] = between
        changes[name] = values
    _change(path, changes)


def _replaced(text: str, name: str, old: Any, new: Any) -> str:
    """Text of a config in which ``"name": old`` is ``"name": new``."""
    entry = f'"{name}": {json.dumps(old)}'
    if text.count(entry) != 1:
        raise ValueError(f"expected {entry} once in the template, got {text.count(entry)}")
    return text.replace(entry, f'"{name}": {json.dumps(new)}')


def _values_of(classes: LabelMap) -> dict[str, list[int]]:
    """Label values of the MR and the class of each, for ``evaluate.json``."""
    label_values = []
    label_classes = []
    for number, values in classes.values("mr").items():
        label_values += values
        label_classes += [number] * len(values)
    return {"label_values": label_values, "label_classes": label_classes}


def _write_metadata(path: Path, names: Mapping[int, str], size_divisor: int) -> None:
    metadata = read_json(path)
    for entry, package in PACKAGES.items():
        metadata[entry] = version(package).partition("+")[0]
    required = metadata["required_packages_version"]
    for package in required:
        required[package] = version(package)
    metadata["pred_classes"] = f"class numbers: {_listed(names)}"
    formats = metadata["network_data_format"]
    for side in (formats["inputs"]["image"], formats["outputs"]["pred"]):
        side["spatial_shape"] = [f"{size_divisor}*(n+1)"] * 2
    output = formats["outputs"]["pred"]
    output["num_channels"] = len(names) + 1
    for number, name in names.items():
        output["channel_def"][str(number)] = name
    write_text(path, json.dumps(metadata, indent=4) + "\n")


def _fill_in(path: Path, values: Mapping[str, str]) -> None:
    template = Template(path.read_text(encoding="utf-8"))
    write_text(path, template.substitute(values))


def _listed(names: Mapping[int, str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in names.items())


def _color_table(names: Mapping[int, str]) -> str:
    """Color table of 3D Slicer: number, name, red, green, blue and opacity, evenly spread over the hues."""
    lines = ["# Color table file"]
    for number, name in names.items():
        hue = (number - 1) / len(names)
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.7, 0.95))
        word = name.replace(" ", "_")
        lines.append(f"{number} {word} {red} {green} {blue} 255")
    return "\n".join(lines) + "\n"
