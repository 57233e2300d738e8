# SPDX-License-Identifier: Apache-2.0
"""One line for a run: it starts with all slices, names the case and its number, and reaches its end."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import LoadImage, Orientation

from contourdiff.inference import VolumeInferer
from contourdiff.inference import progress as module
from contourdiff.inference.progress import run_progress
from contourdiff.inference.run import slice_count
from contourdiff.networks import ContourUNet
from helpers.inferers import as_case, make_inferer, random_contours
from helpers.networks import TINY_NETWORK, make_seeded
from helpers.runs import run_tiny_inference
from helpers.volumes import OBLIQUE, make_dataset, write_nifti

TRANSLATE = VolumeInferer.translate


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def every_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal each slice is a line."""
    monkeypatch.setattr(module, "LINE_INTERVAL_S", 0.0)


def counts(lines: str) -> list[tuple[str, int, int]]:
    """Case, translated slices and total of each line."""
    found = re.findall(r"^(.+): (\d+) of (\d+) slices, ", lines, re.M)
    return [(name, int(translated), int(total)) for name, translated, total in found]


@pytest.mark.parametrize("axcodes", ["RAS", "SLP", "AIR"])
@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_slices_are_counted_as_the_orientation_leaves_them(
    axcodes: str, slice_axis: int, tmp_path: Path
) -> None:
    turned = OBLIQUE @ np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    path = write_nifti(tmp_path / "ct.nii.gz", np.zeros((4, 5, 6), dtype=np.int16), turned)
    oriented = Orientation(axcodes=axcodes, labels=None)(LoadImage(ensure_channel_first=True)(path))
    assert slice_count(path, axcodes, slice_axis) == oriented.shape[1 + slice_axis]


@pytest.mark.usefixtures("every_slice")
def test_a_line_counts_slices_and_the_total_never_falls(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with run_progress({"a": 10, "unread": 20, "b": 30, "c": 40}) as progress:
        progress.begin(["a"], 8)
        for _ in range(8):
            progress.update()
        progress.begin(["b"], 25)
        progress.update()  # and fails
        progress.begin(["c"], 0)
    lines = counts(capsys.readouterr().err)
    assert lines[0] == ("translate", 0, 100)
    assert lines[1:3] == [("a (1 of 4)", 2, 100), ("a (1 of 4)", 3, 100)]
    assert ("b (3 of 4)", 35, 100) in lines
    assert lines[-2:] == [("c (4 of 4)", 100, 100)] * 2
    assert {total for _, _, total in lines} == {100}
    assert [done for _, done, _ in lines] == sorted(done for _, done, _ in lines)


@pytest.mark.parametrize(("interval_s", "count"), [("0", 7), ("3600", 2)])
def test_the_environment_sets_the_time_between_lines(
    interval_s: str,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TQDM_MININTERVAL", interval_s)
    with run_progress({"a": 5}) as progress:
        for _ in range(5):
            progress.update()
    assert len(counts(capsys.readouterr().err)) == count


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_are_for_terminals(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream := Terminal() if terminal else io.StringIO())
    with run_progress({"a": 3, "b": 2}) as progress:
        for case, slices in (("a", 3), ("b", 2)):
            progress.begin([case], slices)
            for _ in range(slices):
                progress.update()
    text = stream.getvalue()
    assert ("\r" in text) == terminal
    assert ("5/5" in text) == terminal
    assert ("5 of 5 slices" in text) != terminal
    assert text.count("\n") == (1 if terminal else 4)  # start, both cases, end


@pytest.mark.parametrize(("slices", "show"), [({"a": 3}, False), ({}, True)])
def test_nothing_is_shown_unasked_or_without_work(
    slices: dict[str, int], show: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_progress(slices, show) as progress:
        progress.begin(["a"], 1)
        progress.update()
    assert capsys.readouterr() == ("", "")


def test_an_interrupted_run_does_not_look_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), run_progress({"a": 3}) as progress:  # noqa: PT012
        progress.begin(["a"], 3)
        progress.update()
        raise KeyboardInterrupt
    assert counts(capsys.readouterr().err)[-1] == ("a (1 of 1)", 1, 3)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever contains the case b fails after its first slice."""

    def translate(self: VolumeInferer, inputs: list, *arguments: Any, **options: Any) -> list:
        if any("b.nii.gz" in volume.meta["filename_or_obj"] for volume in inputs):
            self.progress.begin(["b"], 8)
            self.progress.update()
            raise ValueError("b is bad")
        return TRANSLATE(self, inputs, *arguments, **options)

    monkeypatch.setattr(VolumeInferer, "translate", translate)


@pytest.mark.slow
@pytest.mark.usefixtures("every_slice", "failing")
def test_a_failed_case_leaves_the_line(
    tmp_path: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ct = make_dataset(tmp_path / "ct")
    with pytest.raises(ValueError, match=r"1 of 3 cases failed: b: ValueError: b is bad"):
        run_tiny_inference(ct, tmp_path / "mr", tiny_weights, progress=True)
    lines = counts(capsys.readouterr().err)
    assert lines[0] == ("translate", 0, 30)
    assert [name for name, *_ in lines if name.startswith("b")]
    assert lines[-1] == ("c (3 of 3)", 30, 30)
    assert {total for _, _, total in lines} == {30}


@pytest.mark.slow
@pytest.mark.usefixtures("every_slice")
def test_two_contrasts_are_one_line(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    network = {**TINY_NETWORK, "contrasts": "@contrasts"}
    built = {key: value for key, value in network.items() if key != "_target_"}
    weights = tmp_path / "two.pt"
    torch.save(
        ContourUNet(**{**built, "contrasts": ["t1", "t2"], "contrast": "t1"}).state_dict(), weights
    )
    ct = make_dataset(tmp_path / "ct", ("a", "b"))
    common = {"network_def": network, "contrasts": ["t1", "t2"], "progress": True}
    run_tiny_inference(ct, tmp_path / "mr", weights, contrast="t1,t2", **common)
    lines = counts(capsys.readouterr().err)
    assert lines[0] == ("translate", 0, 40)
    names = list(dict.fromkeys(name for name, *_ in lines))
    assert names == [
        "translate",
        "a_t1 (1 of 4)",
        "a_t2 (2 of 4)",
        "b_t1 (3 of 4)",
        "b_t2 (4 of 4)",
    ]
    assert lines[-1] == ("b_t2 (4 of 4)", 40, 40)


def test_volumes_side_by_side_are_named_together(capsys: pytest.CaptureFixture[str]) -> None:
    batch = as_case([random_contours(0), random_contours(1), random_contours(2)], ["a", "b", "c"])
    make_inferer(progress=True, num_inference_steps=1)(batch, make_seeded())
    lines = counts(capsys.readouterr().err)
    assert lines[-1] == ("a, b, c (3 of 3)", 21, 21)


@pytest.mark.parametrize("overlays", [(), ("single",), ("neighbor_guided",), ("fast",)])
def test_overlays_leave_the_progress_to_the_setting(
    overlays: tuple[str, ...], inference_parser: Callable[..., ConfigParser]
) -> None:
    parser = inference_parser(*overlays, bundle_root="", progress=False)
    assert parser.get_parsed_content("inferer").progress is False
