# SPDX-License-Identifier: Apache-2.0
"""Segment MR by a bundle, and compare the result with labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from contourdiff.bundle import run_config
from contourdiff.data.label_map import LabelMap
from contourdiff.data.nifti_names import case_of, is_nifti, nifti_by_case
from contourdiff.data.training_cases import patient_of
from contourdiff.data.volumes import open_volume
from contourdiff.info import usable_device
from contourdiff.metrics.segmentation import ScoreRow, score_case
from contourdiff.transforms.remap_labels import RemapLabels

INFERENCE = "configs/inference.json"
ENDING = "_seg.nii.gz"


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
        overwrite: segment again what the same weights have segmented.
        settings: of the bundle's ``inference.json``, such as ``largest_component=True``.

    Returns the results, in the order of their names. Raises ``FileNotFoundError`` without a bundle or MR,
    ``ValueError`` for an unknown setting.
    """
    root = Path(model)
    weights = Path(settings.get("ckpt_path", root / "models" / "model.pt"))
    for path in (root / INFERENCE, weights):
        if not path.is_file():
            raise FileNotFoundError(
                f"expected the bundle of a segmentation network, found no {path}; pass its folder"
            )
    results: list[Path] = []
    files: list[Path] = []
    for name, file in mr_files(source).items():
        result = Path(output_dir) / f"{name}{ENDING}"
        results.append(result)
        if overwrite or not _is_newer(result, weights):
            files.append(file)
    if device is not None:
        settings["device"] = usable_device(device)
    if files:
        settings = {**settings, "files": tuple(files), "output_dir": Path(output_dir)}
        run_config("inference", [str(root / INFERENCE)], settings)
    return results


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


def _is_newer(result: Path, weights: Path) -> bool:
    return result.is_file() and result.stat().st_mtime >= weights.stat().st_mtime


def score_results(
    results: Sequence[Path],
    label_dir: str | Path,
    label_map: LabelMap,
    patient_pattern: str = "(.*)",
) -> list[ScoreRow]:
    """Rows of [`contourdiff.metrics.segmentation.score_case`][] for each result with a label of the same name.

    Labels hold the values of ``"mr"`` in ``label_map``.
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
        spacing_mm = np.linalg.norm(label.affine[:3, :3], axis=0)
        scores = score_case(predicted, classes, label_map.classes, spacing_mm.tolist(), case)
        patient = patient_of(case, patient_pattern)
        rows += [{**row, "patient": patient} for row in scores]
    return rows
