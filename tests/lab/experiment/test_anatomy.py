# SPDX-License-Identifier: Apache-2.0
"""Anatomy of the rows' translations: measured once, again when cases are added, and drawn beside the CT."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np

from contourdiff.data.training_cases import labelled_cases
from contourdiff_lab.experiment.anatomy import anatomy_table, draw_translations, translation_folders
from helpers.volumes import ball_ct, write_nifti

INFERENCE = {"bundle": None, "overlays": (), "settings": {"min_object_mm2": 100.0}}
AFFINE = np.diag([4.0, 2.2, 2.2, 1.0])


def experiment(root: Path) -> Path:
    """Two CT, and translations that keep (``ours``) or turn around (``cyclegan``) the CT's gray levels, or shift it."""
    for number, case in enumerate("ab"):
        ct = ball_ct((5, 40, 36), seed=number)
        label = (ct > 200).astype(np.uint8)
        gray = ((np.clip(ct, -200, 300) + 200) / 500 * 255).astype(np.float32)
        write_nifti(root / "ct" / f"{case}.nii.gz", ct, AFFINE)
        write_nifti(root / "ct" / "labels" / f"{case}.nii.gz", label, AFFINE)
        for folder, image in (
            ("ours/translations_seed0", gray),
            ("other", np.roll(gray, 6, axis=1)),
        ):
            write_nifti(root / folder / f"{case}_mr.nii.gz", image, AFFINE)
            write_nifti(root / folder / f"{case}_label.nii.gz", label, AFFINE)
    (root / "plan.json").write_text(json.dumps({"folders": {"tool": str(root / "other")}}))
    return root


def figures(root: Path, translations: dict[str, list[Path]]) -> dict[str, list[float]]:
    """Figures of the table by row."""
    by_row = {}
    for line in anatomy_table(root, translations, INFERENCE).splitlines()[
        2 : 2 + len(translations)
    ]:
        row, *cells = line.strip("| ").split(" | ")
        by_row[row] = [math.nan if cell == "-" else float(cell) for cell in cells]
    return by_row


def test_a_tool_that_shifts_the_anatomy_is_found_out(tmp_path: Path) -> None:
    root = experiment(tmp_path)
    translations = translation_folders(root, ["without_adaptation", "ours", "tool"])
    assert {row: [path.name for path in paths] for row, paths in translations.items()} == {
        "ours": ["translations_seed0"],
        "tool": ["other"],
    }
    measured = figures(root, translations)
    ours = measured["ours"]
    tool = measured["tool"]
    assert ours[0] == tool[0] == 2
    assert ours[1] > tool[1] + 0.2  # label boundaries
    assert ours[6] > 0.95 > 0.6 > tool[3]  # own condition of the one, contour fidelity of the other
    assert np.isnan(ours[3:6]).all()
    assert np.isnan(tool[6])

    path = root / "ours" / "quality" / "translations_seed0" / "quality.json"
    kept = path.stat().st_mtime_ns
    np.testing.assert_equal(figures(root, translations), measured)
    assert path.stat().st_mtime_ns == kept
    for end in ("mr", "label"):
        image = nib.load(root / "ours" / "translations_seed0" / f"a_{end}.nii.gz")
        nib.save(image, root / "ours" / "translations_seed0" / f"c_{end}.nii.gz")
    assert figures(root, translations)["ours"][0] == 3


def test_every_ct_has_a_line_in_the_picture(tmp_path: Path) -> None:
    """Also where a row lacks its translation."""
    root = experiment(tmp_path)
    (root / "other" / "b_mr.nii.gz").unlink()
    translations = translation_folders(root, ["ours", "tool"])
    draw_translations(
        root / "all.png",
        root / "ct",
        translations,
        labelled_cases(root / "ours" / "translations_seed0"),
        INFERENCE,
    )
    assert (root / "all.png").read_bytes().startswith(b"\x89PNG")
