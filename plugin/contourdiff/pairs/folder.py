# SPDX-License-Identifier: Apache-2.0
"""A folder of pairs: the settings that it was made with, its datalist, and its picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from contourdiff import __version__
from contourdiff.data.atomic import read_json, save_figure, write_json
from contourdiff.data.case_files import RECORD_ENDING, CaseFiles, read_record
from contourdiff.data.checks import is_same_grid
from contourdiff.data.label_map import LabelMap
from contourdiff.data.nifti_names import case_of
from contourdiff.data.training_cases import labelled_cases, source_case
from contourdiff.pairs.shapes import ModelGrid, read_oriented
from contourdiff.pictures import draw_outlines, image_grid

SETTINGS = "pairs.json"
DATALIST = "datalist.json"
PICTURE = "pairs.png"
LABEL_MAP = "label_map.json"
CT = "ct"
"""Folder of the CT of the shapes, ``<case>_s<shape>.nii.gz``."""
FOLDS = 5
"""Of the datalist, for cross-validation."""
SHOWN_PAIRS = 8
SHAPE_NAME = re.compile(r"(.+)_s(\d+)")


class Pair(NamedTuple):
    """An MR and its label, and what it was made of."""

    files: CaseFiles
    patient: str
    """The case of the CT."""
    shape: int
    contrast: str | None
    outline: bool
    slice_axis: int
    """Of the slices that were translated, in RAS."""


def shape_name(case: str, number: int) -> str:
    """Case id of a shape."""
    return f"{case}_s{number}"


def case_and_shape(path: Path) -> tuple[str, int]:
    """Case of the CT and number of the shape in the name of a file; ``ValueError`` for another name."""
    match = SHAPE_NAME.fullmatch(case_of(path))
    if match is None:
        raise ValueError(f"expected a shape <case>_s<number>.nii.gz, got {path}; remove the file")
    return match[1], int(match[2])


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a folder has pairs that were made with other ``settings``: they would be mixed."""
    written = _written(folder).get("settings", settings)
    for name, value in settings.items():
        if written.get(name) != value:
            raise ValueError(
                f"expected pairs made with {name} {value!r} in {folder}, found some made with {written.get(name)!r}; "
                "pass another folder, or the same settings"
            )


def write_settings(folder: Path, settings: Mapping[str, Any], classes: Mapping[int, str]) -> None:
    """Write the settings of the pairs to ``pairs.json``, and the names of the classes to those of earlier runs."""
    names = dict(_written(folder).get("classes", {}))
    for value, name in classes.items():
        names[str(value)] = name
    content = {"contourdiff": __version__, "settings": dict(settings), "classes": names}
    write_json(folder / SETTINGS, content)


def _written(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    if not path.is_file():
        return {}
    return dict(read_json(path))


def pairs_in(folder: Path) -> list[Pair]:
    """All pairs of a folder that are complete, by patient, shape and contrast."""
    pairs = []
    for path in folder.glob(f"*{RECORD_ENDING}"):
        record = read_record(path) or {}
        name = SHAPE_NAME.fullmatch(record.get("case", ""))
        files = CaseFiles.of_record(path)
        is_complete = files.mr.is_file() and files.label.is_file()
        if name is None or not is_complete:
            continue
        settings = record["settings"]
        contrast = None
        if settings.get("contrasts"):
            contrast = settings["contrast"]
        outline = settings.get("outline", False)
        pair = Pair(files, name[1], int(name[2]), contrast, outline, settings["slice_axis"])
        pairs.append(pair)
    return sorted(pairs, key=_order)


def ct_file(folder: Path, shape: str) -> Path:
    """CT of a shape, by its case id, in a folder of pairs."""
    return folder / CT / f"{shape}.nii.gz"


def labelled_pairs(folders: str | Path | Sequence[str | Path]) -> list[dict[str, str]]:
    """Items ``image``, ``label`` and, where their folder has it, ``ct`` of all pairs, each a path, sorted by name.

    Without CT these are the items of [`contourdiff.data.training_cases.labelled_cases`][], whose layouts and errors
    they share. Raises ``ValueError`` if a folder has CT, but not that of a pair, or on another grid.
    """
    items = labelled_cases(folders)
    for item in items:
        folder = Path(item["image"]).parent
        if not (folder / CT).is_dir():
            continue
        path = ct_file(folder, source_case(item["image"]))
        mr = nib.load(item["image"])
        if not path.is_file() or not _is_on_grid_of(mr, path):
            raise ValueError(
                f"expected the CT of {item['image']}, {mr.shape}, at {path}, found none on this grid; make the pairs "
                f"again by contourdiff pairs, or remove the folder {CT} to train without CT"
            )
        item["ct"] = str(path)
    return items


def _is_on_grid_of(mr: nib.Nifti1Image, path: Path) -> bool:
    ct = nib.load(path)
    return ct.shape == mr.shape and is_same_grid(ct.affine, mr.affine, mr.shape)


def _order(pair: Pair) -> tuple[str, int, str]:
    return pair.patient, pair.shape, pair.contrast or ""


def write_datalist(folder: Path, pairs: Sequence[Pair]) -> None:
    """Write ``datalist.json`` in the layout of the Decathlon, which MONAI's ``load_decathlon_datalist`` reads.

    All pairs of a patient have one ``fold``, so that none is validated on a patient that it was trained on.
    """
    patients = sorted({pair.patient for pair in pairs})
    folds = {patient: number % FOLDS for number, patient in enumerate(patients)}
    training = []
    for pair in pairs:
        entry = {
            "image": pair.files.mr.name,
            "label": pair.files.label.name,
            "patient": pair.patient,
            "shape": pair.shape,
            "contrast": pair.contrast,
            "outline": pair.outline,
            "fold": folds[pair.patient],
        }
        training.append(entry)
    content = {
        "name": folder.resolve().name,
        "description": "MR translated from CT, with the labels of the CT, by contourdiff",
        "modality": {"0": "MR"},
        "labels": {"0": "background", **_written(folder).get("classes", {})},
        "numTraining": len(training),
        "training": training,
        "test": [],
    }
    write_json(folder / DATALIST, content)


def write_label_map(folder: Path, label_map: LabelMap) -> None:
    """Write the map to train with, whose side ``ct`` has the class numbers that the labels of the pairs have."""
    sides: dict[str, dict[str, list[int]]] = {"ct": {}, "mr": {}}
    for number, name in label_map.classes.items():
        sides["ct"][name] = [number]
        sides["mr"][name] = label_map.values("mr")[number]
    names = list(label_map.classes.values())
    write_json(folder / LABEL_MAP, {"classes": names, **sides})


def write_picture(folder: Path, pairs: Sequence[Pair], model: ModelGrid) -> None:
    """Draw some of the pairs, spread over all: the slice with the largest label, without and with its outlines."""
    count = min(SHOWN_PAIRS, len(pairs))
    shown = np.linspace(0, len(pairs) - 1, count)
    chosen = [pairs[round(position)] for position in shown]
    slices = [_fullest_slice(pair, model) for pair in chosen]
    images = [image for image, _ in slices]
    labels = [label for _, label in slices]
    titles = []
    for pair in chosen:
        title = pair.files.name
        if pair.outline:
            title += ", outline"
        titles.append(title)
    figure = image_grid([images, images], [titles])
    last_row = figure.axes[len(labels) :]
    draw_outlines(last_row, labels)
    for ax in figure.axes:
        ax.invert_xaxis()
    save_figure(figure, folder / PICTURE, dpi=90)


def _fullest_slice(pair: Pair, model: ModelGrid) -> tuple[np.ndarray, np.ndarray]:
    """MR and label ``(H, W)`` of the slice of a pair with the most labelled voxels."""
    files = {"mr": pair.files.mr, "label": pair.files.label}
    volumes = read_oriented(files, model.axcodes)
    mr, label = (np.asarray(volumes[key][0]) for key in files)
    mr = np.moveaxis(mr, model.slice_axis, 0)
    label = np.moveaxis(label, model.slice_axis, 0)
    areas = np.count_nonzero(label > 0, axis=(1, 2))
    fullest = int(areas.argmax())
    return mr[fullest], label[fullest]
