# SPDX-License-Identifier: Apache-2.0
"""Translations as training data of nnU-Net."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from contourdiff.data.atomic import atomic_folder
from contourdiff.data.label_map import LabelMap
from contourdiff.data.nifti import save_like
from contourdiff.data.nifti_names import case_name, case_of
from contourdiff.data.training_cases import labelled_cases
from contourdiff.transforms import RemapLabels


def write_nnunet(
    dataset_dir: str | Path | Sequence[str | Path], output_dir: str | Path, label_map: str | Path
) -> Path:
    """Write translations and their labels as a data set in the raw format of nnU-Net v2.

    Images are copied. Labels become the classes of the ``ct`` side of ``label_map``, a file, numbered from 1, uint8.
    The channel is named ``MR``, which nnU-Net normalizes by each image's own statistics. Arguments are folders of
    translations, see [`contourdiff.data.training_cases.labelled_cases`][], and a new or empty folder named as nnU-Net
    requires, ``Dataset001_Name``. Returns the path of its ``dataset.json``. Raises ``ValueError`` for another name or a
    case that occurs twice, ``FileNotFoundError`` for a missing folder or label map.
    """
    output_dir = Path(output_dir)
    classes = LabelMap(label_map)
    if not re.fullmatch(r"Dataset\d{3}_\w+", output_dir.name):
        raise ValueError(
            f"expected a folder named like Dataset001_Name for nnU-Net, got {output_dir.name!r}; rename it"
        )
    cases = labelled_cases(dataset_dir)
    counts = Counter(case_name(case["image"]) for case in cases)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise ValueError(
            f"expected every case once, got twice: {repeated}; translate other seeds of other case names"
        )
    remap = RemapLabels(classes, "ct")
    with atomic_folder(output_dir) as aside:
        (aside / "imagesTr").mkdir()
        for case in tqdm(cases, "write nnU-Net data set", unit="case"):
            name = case_name(case["image"])
            suffix = Path(case["image"]).name.removeprefix(case_of(case["image"]))
            shutil.copyfile(case["image"], aside / "imagesTr" / f"{name}_0000{suffix}")
            label = remap(np.asarray(nib.load(case["label"]).dataobj))
            label = np.asarray(label).astype(np.uint8)
            save_like(label, case["label"], aside / "labelsTr" / f"{name}{suffix}")
        numbers = {name: number for number, name in classes.classes.items()}
        content = {
            "channel_names": {"0": "MR"},
            "labels": {"background": 0, **numbers},
            "numTraining": len(cases),
            "file_ending": suffix,
        }
        text = json.dumps(content, indent=4) + "\n"
        (aside / "dataset.json").write_text(text, encoding="utf-8")
    return output_dir / "dataset.json"
