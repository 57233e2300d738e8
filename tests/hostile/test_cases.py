# SPDX-License-Identifier: Apache-2.0
"""One folder with every kind of bad volume: each is translated exactly, or refused with one clear line."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest

from contourdiff.data.nifti_names import case_of
from helpers.runs import run_tiny_inference
from helpers.volumes import read_voxels
from hostile.corpus import IGNORED, KINDS, WARNED

pytestmark = pytest.mark.slow
ACCEPTED = [name for name, kind in KINDS.items() if kind.refusal is None]
ENDS = ("_mr.nii.gz", "_mr.json", "_mr.png", "_label.nii.gz")
REFUSED = [name for name in KINDS if name not in ACCEPTED]


class Run(NamedTuple):
    source: Path
    output: Path
    lines: list[str]
    error: str
    before: set[Path]


class Lines(logging.Handler):
    """All that is logged, as lines."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture(scope="module")
def translated(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Run:
    """One translation of a folder with a case of every kind."""
    folder = tmp_path_factory.mktemp("hostile")
    source, handler, logger = folder / "ct", Lines(), logging.getLogger()
    (source / "labels").mkdir(parents=True)
    for name, kind in KINDS.items():
        kind.build(source, name)
    for build in IGNORED:
        build(source)
    before, level = set(folder.rglob("*")), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    short = {
        "num_inference_steps": 1,
        "candidates": 1,
        "max_rounds": 1,
        "progress": False,
        "preview#columns": 1,
    }
    with pytest.raises(ValueError, match="cases failed") as failed:
        run_tiny_inference(source, folder / "mr", tiny_weights, **short)
    logger.removeHandler(handler)
    logger.setLevel(level)
    return Run(source, folder / "mr", handler.lines, str(failed.value), before)


def source_of(folder: Path, case: str) -> Path | None:
    found = [
        path for path in folder.iterdir() if not path.name.startswith(".") and case_of(path) == case
    ]
    return found[0] if found else None


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_keeps_its_grid_and_its_label(name: str, translated: Run) -> None:
    case = KINDS[name].case
    source, label = (
        source_of(translated.source, case),
        source_of(translated.source / "labels", case),
    )
    if KINDS[name].label is not None:
        label = translated.source / "labels" / str(KINDS[name].label)
    assert source is not None
    ct, mr = nib.load(source), nib.load(translated.output / f"{case}_mr.nii.gz")
    assert mr.shape == ct.shape
    np.testing.assert_array_equal(mr.affine, ct.affine)
    for form in ("get_sform", "get_qform"):
        if getattr(ct, form)(coded=True)[1]:
            np.testing.assert_array_equal(getattr(mr, form)(), getattr(ct, form)())
    data = np.asarray(mr.dataobj)
    assert np.isfinite(data).all()
    assert 0 <= data.min() <= data.max() <= 255
    written = translated.output / f"{case}_label.nii.gz"
    assert written.is_file() == (label is not None)
    if label is not None:
        np.testing.assert_array_equal(read_voxels(written), read_voxels(label))
        np.testing.assert_array_equal(nib.load(written).affine, nib.load(label).affine)
    record = json.loads((translated.output / f"{case}_mr.json").read_text())
    assert bool(record["warnings"]) == (name in WARNED or data_type_holds_no_hu(name))
    assert (translated.output / f"{case}_mr.png").is_file()


def data_type_holds_no_hu(name: str) -> bool:
    return name in {f"dtype_{kind}" for kind in ("i1", "u1", "u2", "u4", "u8")}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_in_one_line_with_the_reason(name: str, translated: Run) -> None:
    _, case, refusal, _ = KINDS[name]
    own = [line for line in translated.lines if line.startswith(f"{case}: ")]
    own = [line for line in own if "expected" in line]  # a warning may be there, too
    assert len(own) == 2, own  # as it is checked, and in the summary
    assert re.search(refusal or "", own[0]), own[0]
    reason = own[0].removeprefix(f"{case}: ").removeprefix("translation failed, ")
    assert own[1] == f"{case}: failed, {reason}"
    assert "expected" in own[0]
    assert " got" in own[0] or "but" in own[0]
    assert ";" in own[0]
    assert not [end for end in ENDS if (translated.output / f"{case}{end}").exists()]


def test_every_other_case_is_done_and_the_run_says_so(translated: Run) -> None:
    summary = f"{len(ACCEPTED)} translated, 0 kept, {len(REFUSED)} failed"
    assert any(line.startswith(summary) for line in translated.lines), translated.lines[-1]
    assert translated.error.startswith(f"{len(REFUSED)} of {len(KINDS)} cases failed: ")
    assert len(KINDS) >= 130


def test_a_label_of_no_case_is_named_before_the_work(translated: Run) -> None:
    warning = (
        "labels/label_empty_seg.nii.gz belongs to no case, and is not used: "
        "expected the name of one, such as label_empty.nii.gz; rename it"
    )
    errors = [line for line in translated.lines if "expected a readable NIfTI" in line]
    assert translated.lines.index(warning) < translated.lines.index(errors[0])
    assert json.loads((translated.output / "run.json").read_text())["warnings"] == [warning]


def test_no_traceback_and_no_line_break_is_logged(translated: Run) -> None:
    assert [
        line for line in translated.lines if "Traceback" in line or "\n" in line or "\x1b" in line
    ] == []


def test_nothing_is_written_elsewhere_and_nothing_is_left_half(translated: Run) -> None:
    folder = translated.output.parent
    after = {path for path in folder.rglob("*") if translated.output not in (path, *path.parents)}
    assert after == translated.before
    cases = {KINDS[name].case for name in ACCEPTED}
    written = {path.name for path in translated.output.rglob("*") if path.is_file()} - {"run.json"}
    assert {
        name
        for name in written
        if not any(name == f"{case}{end}" for case in cases for end in ENDS)
    } == set()


def test_no_text_of_a_header_is_carried_into_the_outputs(translated: Run) -> None:
    """Neither of the CT's nor of the label's; the files are searched after decompression."""
    for end in ("mr.nii.gz", "label.nii.gz"):
        image = nib.load(translated.output / f"secret_header_{end}")
        raw = image.header.binaryblock + b"".join(
            one.get_content() for one in image.header.extensions
        )
        assert b"SECRET" not in raw
        assert not image.header.extensions
    others = b"".join(
        (translated.output / f"secret_header_mr.{end}").read_bytes() for end in ("json", "png")
    )
    assert b"SECRET" not in others
    assert b"SECRET" in (translated.source / "secret_header.nii").read_bytes()
