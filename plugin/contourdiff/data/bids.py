# SPDX-License-Identifier: Apache-2.0
"""BIDS: CT of a dataset in, translations as a derivative dataset out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from contourdiff import __version__
from contourdiff.data.atomic import link_file, write_text
from contourdiff.data.nifti_names import case_of, is_nifti

ADDED = "space|res|den|seg|desc|label|atlas"
"""Entities that a segmentation's name may have beside those of its image."""
OURS = "_desc-contourdiff"
"""Of all that is written here, so that a label in it is no second label of its CT."""
README = (
    "These are no acquired MR: each was computed from the CT that its sidecar names, with the weights and settings "
    "there. A dseg is the label of the CT, voxel for voxel."
)
SUFFIXES = {"t1": "T1w", "t2": "T2w"}


def bids_inputs(root: Path) -> list[tuple[Path, Path | None]]:
    """CT and label of a BIDS dataset; empty if the folder is none.

    CT are ``sub-*/[ses-*/]ct/*_ct.nii.gz``, as BEP 24 proposes. A label is ``*_dseg.nii.gz`` with the CT's entities,
    beside the CT or in the folders of its subject and session in ``derivatives/*``. Raises ``ValueError`` for a CT
    with several labels.
    """
    return [(path, _label_of(path, root)) for path in bids_images(root)]


def bids_images(root: Path) -> list[Path]:
    """CT of a BIDS dataset, without a look for labels."""
    found = [
        path
        for pattern in ("sub-*/ct/*_ct.*", "sub-*/ses-*/ct/*_ct.*")
        for path in root.glob(pattern)
    ]
    return sorted(filter(is_nifti, found))


def _label_of(image: Path, root: Path) -> Path | None:
    entities = case_of(image).removesuffix("_ct")
    name = re.compile(rf"{re.escape(entities)}(_({ADDED})-[a-zA-Z0-9]+)*_dseg\.nii(\.gz)?")
    folder = image.parent.parent.relative_to(root)
    places = [image.parent, *sorted(root.glob(f"derivatives/*/{folder}/*"))]
    files = [path for place in places if place.is_dir() for path in sorted(place.iterdir())]
    labels = [path for path in files if name.fullmatch(path.name) and OURS not in path.name]
    if len(labels) > 1:
        names = [path.relative_to(root).as_posix() for path in labels]
        raise ValueError(
            f"expected one label of {image.name}, found {names}; name the right ones in a datalist"
        )
    return labels[0] if labels else None


def check_subjects(cases: Iterable[str]) -> None:
    """Raise ``ValueError`` for a case without a subject, which a derivative dataset has no place for."""
    if wrong := [case for case in cases if not re.match(r"sub-[a-zA-Z0-9]+_", case)]:
        raise ValueError(
            f"expected cases sub-<label>_..._ct for a BIDS dataset, got {wrong[:3]}; leave out --bids"
        )


def write_derivatives(records: Iterable[Path], bids_dir: str | Path) -> None:
    """Link, or else copy, translations to ``bids_dir`` as a BIDS derivative dataset.

    ``<case>_mr.nii.gz``, its record and its label become ``sub-*/[ses-*/]anat/<entities>_desc-contourdiff_T1w.nii.gz``
    (or ``T2w``, by the contrast in the record), and ``<entities>_desc-contourdiff_dseg.nii.gz``, each with its sidecar.
    ``records`` are the files ``<case>_mr.json`` beside them. A README is written where there is none.
    """
    target = Path(bids_dir)
    for path in records:
        record, name = (
            json.loads(path.read_text(encoding="utf-8")),
            path.name.removesuffix("_mr.json"),
        )
        entities = record["case"].removesuffix("_ct")
        folder = target.joinpath(*re.findall(r"(?:sub|ses)-[a-zA-Z0-9]+", entities), "anat")
        stem = f"{entities}{OURS}"
        mr = f"{stem}_{SUFFIXES.get(record['settings'].get('contrast'), 'T1w')}"
        for postfix, new in (("_mr", mr), ("_label", f"{stem}_dseg")):
            for source in path.parent.glob(f"{name}{postfix}.nii*"):
                link_file(source, folder / source.name.replace(f"{name}{postfix}", new))
        sidecar = {
            "Description": "MR translated from CT",
            "SkullStripped": False,
            "Sources": [record["image"]],
        }
        write_text(
            folder / f"{mr}.json", json.dumps({**sidecar, "contourdiff": record}, indent=2) + "\n"
        )
        if record["label"]:
            sidecar = {
                "Description": "Label of the CT",
                "SpatialReference": "orig",
                "Sources": [record["label"]],
            }
            write_text(folder / f"{stem}_dseg.json", json.dumps(sidecar, indent=2) + "\n")
    description = _description()
    write_text(target / "dataset_description.json", json.dumps(description, indent=2) + "\n")
    if not any(target.glob("README*")):
        write_text(target / "README", f"{description['Name']}. {README}\n")


def _description() -> dict[str, Any]:
    return {
        "Name": "MR translated from CT by contourdiff",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "contourdiff", "Version": __version__}],
    }
