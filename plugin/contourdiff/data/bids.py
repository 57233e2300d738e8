# SPDX-License-Identifier: Apache-2.0
"""BIDS: CT of a dataset in, translations as a derivative dataset out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from contourdiff import __version__
from contourdiff.data.atomic import link_file, read_json, write_json, write_text
from contourdiff.data.case_files import CaseFiles
from contourdiff.data.nifti_names import case_of, check_name_length, is_nifti

LABEL_ENTITIES = "space|res|den|seg|desc|label|atlas"
"""Entities that the name of a segmentation may have beside those of its image."""
OURS = "_desc-contourdiff"
"""Entity of every file that is written here, so that a label among them is no second label of its CT."""
README = (
    "These are no acquired MR: each was computed from the CT that its sidecar names, with the weights and settings "
    "there. A dseg is the label of the CT, voxel for voxel."
)
SUFFIXES = {"t1": "T1w", "t2": "T2w", "t2_space": "T2w"}
DESCRIPTIONS = {"t2_space": "_desc-contourdiffspace"}
"""Entities of contrasts that share a suffix with another."""
DESCRIPTION = {
    "Name": "MR translated from CT by contourdiff",
    "BIDSVersion": "1.10.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "contourdiff", "Version": __version__}],
}


def bids_inputs(root: Path) -> list[tuple[Path, Path | None]]:
    """CT and label of each case of a BIDS dataset; empty for another folder.

    CT are ``sub-*/[ses-*/]ct/*_ct.nii.gz``, as BEP 24 proposes. A label is ``*_dseg.nii.gz`` with the CT's entities,
    beside the CT or in the folders of its subject and session in ``derivatives/*``. Raises ``ValueError`` for a CT
    with several labels.
    """
    return [(path, _label_of(path, root)) for path in bids_images(root)]


def bids_images(root: Path) -> list[Path]:
    """CT of a BIDS dataset, without a look for labels."""
    images = [*root.glob("sub-*/ct/*_ct.*"), *root.glob("sub-*/ses-*/ct/*_ct.*")]
    return sorted(filter(is_nifti, images))


def check_derivatives(cases: Iterable[str], bids_dir: str | Path) -> None:
    """Raise ``ValueError`` for a case without a subject, or another dataset in ``bids_dir``.

    A ``dataset_description.json`` that is there must be of an earlier run.
    """
    cases = list(cases)
    description = Path(bids_dir) / "dataset_description.json"
    if description.is_file() and not _is_ours(description):
        raise ValueError(
            f"expected a folder for a dataset of translations, got another dataset in {bids_dir}; "
            "pass a folder of its own, such as derivatives/contourdiff"
        )
    without_subject = [case for case in cases if not re.match(r"sub-[a-zA-Z0-9]+_", case)]
    if without_subject:
        raise ValueError(
            f"expected cases sub-<label>_..._ct for a BIDS dataset, got {without_subject[:3]}; leave out --bids"
        )
    for case in cases:
        check_name_length(Path(f"{case.removesuffix('_ct')}{OURS}space_dseg.nii.gz"))


def _is_ours(description: Path) -> bool:
    try:
        return bool(read_json(description)["Name"] == DESCRIPTION["Name"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_derivatives(records: Iterable[Path], bids_dir: str | Path) -> None:
    """Link, or else copy, translations to ``bids_dir`` as a BIDS derivative dataset.

    ``<case>_mr.nii.gz``, its record and its label become ``sub-*/[ses-*/]anat/<entities>_desc-contourdiff_T1w.nii.gz``
    and ``<entities>_desc-contourdiff_dseg.nii.gz``, each with its sidecar. The MR ends in ``_T2w`` or,
    for T2 SPACE, ``space_T2w`` by the contrast in the record.
    ``records`` are the files ``<case>_mr.json`` beside them. A README is written where there is none.
    """
    target = Path(bids_dir)
    for path in records:
        record = read_json(path)
        files = CaseFiles.of_record(path)
        entities = record["case"].removesuffix("_ct")
        folder = target.joinpath(*re.findall(r"(?:sub|ses)-[a-zA-Z0-9]+", entities), "anat")
        stem = f"{entities}{OURS}"
        contrast = record["settings"].get("contrast")
        mr = f"{entities}{DESCRIPTIONS.get(contrast, OURS)}_{SUFFIXES.get(contrast, 'T1w')}"
        for source, name in ((files.mr, mr), (files.label, f"{stem}_dseg")):
            if is_nifti(source):
                link_file(source, folder / f"{name}{files.extension}")
        sidecar = {
            "Description": "MR translated from CT",
            "SkullStripped": False,
            "Sources": [record["image"]],
            "contourdiff": record,
        }
        write_json(folder / f"{mr}.json", sidecar)
        if record["label"]:
            label_sidecar = {
                "Description": "Label of the CT",
                "SpatialReference": "orig",
                "Sources": [record["label"]],
            }
            write_json(folder / f"{stem}_dseg.json", label_sidecar)
        if record.get("classes"):
            lines = [f"{value}\t{name}\n" for value, name in record["classes"].items()]
            write_text(folder / f"{stem}_dseg.tsv", "index\tname\n" + "".join(lines))
    write_json(target / "dataset_description.json", DESCRIPTION)
    if not any(target.glob("README*")):
        write_text(target / "README", f"{DESCRIPTION['Name']}. {README}\n")


def _label_of(image: Path, root: Path) -> Path | None:
    entities = re.escape(case_of(image).removesuffix("_ct"))
    name = re.compile(rf"{entities}(_({LABEL_ENTITIES})-[a-zA-Z0-9]+)*_dseg\.nii(\.gz)?")
    subject = image.parent.parent.relative_to(root)
    labels = []
    folders = sorted(root.glob(f"derivatives/*/{subject}/*"))
    for folder in (image.parent, *folders):
        for path in sorted(folder.glob("*_dseg.nii*")):
            if name.fullmatch(path.name) and OURS not in path.name:
                labels.append(path)
    if len(labels) > 1:
        names = [path.relative_to(root).as_posix() for path in labels]
        raise ValueError(
            f"expected one label of {image.name}, found {names}; name the right ones in a datalist"
        )
    return labels[0] if labels else None
