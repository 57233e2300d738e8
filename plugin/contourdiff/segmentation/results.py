# SPDX-License-Identifier: Apache-2.0
"""Segment MR by a bundle, and compare the result with labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import voxel_sizes

from contourdiff.bundle import run_config
from contourdiff.data.atomic import read_json, write_json
from contourdiff.data.checks import check_output_dir
from contourdiff.data.label_map import LabelMap
from contourdiff.data.nifti_names import case_of, is_nifti, nifti_by_case
from contourdiff.data.volumes import open_volume
from contourdiff.info import usable_device
from contourdiff.metrics.segmentation import ScoreRow, score_case
from contourdiff.segmentation.model_bundle import INFERENCE, TEMPLATE
from contourdiff.transforms.remap_labels import RemapLabels
from contourdiff.weights import sha256_of

ENDING = "_seg.nii.gz"
RECORD = "segment.json"
"""Weights and settings of the results in a folder."""


def segment(
    model: str | Path,
    source: str | Path,
    output_dir: str | Path,
    *,
    device: torch.device | str | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> list[Path]:
    """Segment an MR, or every MR of a folder, by the bundle of a segmentation network.

    Args:
        model: folder of the bundle.
        source: a NIfTI file, or a folder of such.
        output_dir: folder of ``<case>_seg.nii.gz``, class numbers on the grid of the MR.
        device: of torch; ``None`` takes a GPU if there is one.
        overwrite: segment again what the same weights have segmented with the same settings.
        settings: of the bundle's ``inference.json``, such as ``largest_component=True``.

    Returns the results, in the order of their names. Raises ``FileNotFoundError`` without a bundle or MR,
    ``ValueError`` for an unknown setting, and as [`check_config`][].
    """
    root = Path(model)
    weights = Path(settings.get("ckpt_path", root / "models" / "model.pt"))
    for path in (root / INFERENCE, weights):
        if not path.is_file():
            raise FileNotFoundError(
                f"expected the bundle of a segmentation network, found no {path}; pass its folder"
            )
    check_config(root)
    images = mr_files(source)
    check_output_dir(output_dir)
    record = Path(output_dir) / RECORD
    made_with = {"weights": sha256_of(weights), "settings": {**settings}}
    made_with = json.loads(json.dumps(made_with, default=str))
    keep = not overwrite and record.is_file() and read_json(record) == made_with
    results: list[Path] = []
    missing: list[Path] = []
    for name, image in images.items():
        result = Path(output_dir) / f"{name}{ENDING}"
        results.append(result)
        if not keep or not result.is_file():
            missing.append(image)
    if device is not None:
        settings["device"] = usable_device(device)
    if missing:
        for result in results:
            if not keep:
                result.unlink(missing_ok=True)
        write_json(record, made_with)
        settings = {**settings, "files": tuple(missing), "output_dir": Path(output_dir)}
        run_config("inference", [str(root / INFERENCE)], settings)
    return results


def check_config(model: Path) -> None:
    """Refuse a bundle whose ``inference.json`` may run anything but the segmentation of this package.

    A config is a program. Numbers may be others than those of the template, nothing else. Raises ``ValueError``.
    """
    expected = read_json(TEMPLATE / INFERENCE)
    config = read_json(model / INFERENCE)
    for name, value in config.items():
        if not _is_same_but_numbers(value, expected.get(name)):
            raise ValueError(
                f"expected {name} in {model / INFERENCE} as contourdiff transfer writes it, got {value!r}; if you "
                "trust the bundle, run it by python -m monai.bundle run"
            )


def _is_same_but_numbers(value: Any, expected: Any) -> bool:
    """Whether two entries of a config are equal, apart from numbers and flags; texts of a list may change places."""
    if isinstance(value, dict):
        if not isinstance(expected, dict) or value.keys() != expected.keys():
            return False
        return all(_is_same_but_numbers(value[key], expected[key]) for key in value)
    if value == expected:
        return True
    items = value if isinstance(value, list) else [value]
    texts = []
    if isinstance(expected, list):
        texts = [item for item in expected if isinstance(item, str)]
    return all(isinstance(item, (int, float)) or item in texts for item in items)


def mr_files(source: str | Path) -> dict[str, Path]:
    """MR files by case: a file alone, or those of a folder, or of its ``images``; ``FileNotFoundError`` without any."""
    path = Path(source)
    if path.is_file() and is_nifti(path):
        return {case_of(path): path.absolute()}
    folder = path / "images" if (path / "images").is_dir() else path
    files = nifti_by_case(folder) if folder.is_dir() else {}
    if not files:
        raise FileNotFoundError(
            f"expected an MR (NIfTI) or a folder of such at {source}, found none; pass another"
        )
    return {name: files[name].absolute() for name in sorted(files)}


def score_results(
    results: Sequence[Path], label_dir: str | Path, label_map: LabelMap
) -> list[ScoreRow]:
    """Rows of [`contourdiff.metrics.segmentation.score_case`][] for each result with a label of the same name.

    Labels hold the values of ``"mr"`` in ``label_map``. Every case is a patient of its own.
    """
    labels = nifti_by_case(Path(label_dir))
    remap = RemapLabels(label_map, "mr")
    rows: list[ScoreRow] = []
    for result in results:
        case = result.name.removesuffix(ENDING)
        if case not in labels:
            continue
        label = open_volume(labels[case])
        values = remap(np.asarray(label.dataobj))
        classes = np.asarray(values, dtype=np.int64)
        predicted = np.asarray(nib.load(result).dataobj).reshape(classes.shape)
        spacing_mm = voxel_sizes(label.affine)
        scores = score_case(predicted, classes, label_map.classes, spacing_mm.tolist(), case)
        rows += [{**row, "patient": case} for row in scores]
    return rows
