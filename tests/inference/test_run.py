# SPDX-License-Identifier: Apache-2.0
"""The run of a config: cases are checked once for all contrasts, and a record keeps a case for its contrast alone."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import pytest
import torch

import contourdiff.weights
from contourdiff.data import inputs
from contourdiff.data import translation_cases as module
from contourdiff.networks import ContourUNet
from contourdiff.translation import translate_path
from helpers import TINY_NETWORK, ball_ct, make_dataset, run, write_series

NETWORK = {**TINY_NETWORK, "contrasts": "@contrasts"}
BOTH = {"network_def": NETWORK, "contrasts": ["t1", "t2"], "contrast": "t1,t2", "progress": False}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "two.pt"
    built = {key: value for key, value in NETWORK.items() if key != "_target_"}
    torch.save(ContourUNet(**{**built, "contrasts": ["t1", "t2"]}).state_dict(), path)
    return path


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are checked."""
    names: list[str] = []
    check = module.check_case
    monkeypatch.setattr(
        module,
        "check_case",
        lambda image: names.append(Path(image).name) or check(image),
    )
    return names


def test_a_case_is_checked_once_for_two_contrasts(
    tmp_path: Path, weights: Path, checked: list[str]
) -> None:
    ct = make_dataset(tmp_path / "ct", ("a", "b"))
    (ct / "c.nii.gz").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"^2 of 6 cases failed: c_t1: expected .*; c_t2: expected "
    ):
        run(ct, tmp_path / "mr", weights, **BOTH)
    assert checked == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "mr").glob("*_mr.json")) == [
        f"{case}_{contrast}_mr.json" for case in "ab" for contrast in ("t1", "t2")
    ]


@pytest.mark.parametrize("contrast", ["t1", "t1,t2"])
def test_weights_are_loaded_once_for_all_contrasts(
    contrast: str, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    load = contourdiff.weights.load_weights
    monkeypatch.setattr(
        "contourdiff.weights.load_weights", lambda **given: loaded.append(given) or load(**given)
    )
    run(
        make_dataset(tmp_path / "ct", ("a",)),
        tmp_path / "mr",
        weights,
        **{**BOTH, "contrast": contrast},
    )
    assert len(loaded) == 1


def test_a_record_keeps_a_case_for_its_contrast(
    tmp_path: Path, weights: Path, checked: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    ct, mr = make_dataset(tmp_path / "ct", ("a", "b")), tmp_path / "mr"
    run(ct, mr, weights, **BOTH)
    (mr / "b_t2_mr.json").unlink()
    checked.clear()
    caplog.clear()
    with caplog.at_level("INFO"):
        run(ct, mr, weights, **BOTH)
    assert checked == ["b.nii.gz"]
    messages = [record.getMessage() for record in caplog.records]
    kept = [message.split(": kept")[0] for message in messages if ": kept" in message]
    done = [message.split(" kept")[0] for message in messages if " translated, " in message]
    assert kept == ["a_t1", "a_t2", "b_t1"]
    assert done == ["1 translated, 3"]
    assert json.loads((mr / "b_t2_mr.json").read_text())["settings"]["contrast"] == "t2"


def test_a_dicom_folder_is_listed_once(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "dicom", ball_ct((6, 40, 36)))
    listed: list[Path] = []
    has_series = inputs.has_ct_series
    monkeypatch.setattr(
        inputs, "has_ct_series", lambda folder: listed.append(folder) or has_series(folder)
    )
    monkeypatch.chdir(tmp_path)
    short = {"num_inference_steps": 2, "candidates": 1, "max_rounds": 1, "min_object_mm2": 100.0}
    (one, other) = translate_path(".", "mr", weights=weights, overlays=["single"], **BOTH, **short)
    assert listed == [Path("dicom")]
    assert (one.case, one.contrast, other.contrast) == ("dicom", "t1", "t2")
    assert nib.load(one.mr).shape == nib.load(one.ct).shape == (36, 40, 6)
