# SPDX-License-Identifier: Apache-2.0
"""The module of 3D Slicer without Slicer: command line, progress, results, cancel, and what is installed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import requires, version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from contourdiff.phantom import write_phantom
from contourdiff.translation import translate_path
from helpers.paths import REPOSITORY
from helpers.volumes import read_voxels

MODULE = REPOSITORY / "plugin" / "slicer" / "ContourDiff" / "ContourDiff"
SHAPE = (3, 80, 70)
SPACING_MM = (13.0, 2.0, 2.2)
RESULT = (
    '{"results": [{"status": "translated", "contrast": null, "mr": "/t/a_mr.nii.gz", "label": null,'
    ' "warnings": ["suspicious"], "error": null}]}'
)


@pytest.fixture(scope="module")
def library() -> Iterator[Path]:
    """The folder of the module on the path, as Slicer has it."""
    sys.path.insert(0, str(MODULE))
    yield MODULE
    sys.path.remove(str(MODULE))


@pytest.fixture(scope="module")
def logic(library: Path) -> ModuleType:
    return import_module("ContourDiffLib.Logic")


@pytest.fixture(scope="module")
def requirements(library: Path) -> ModuleType:
    return import_module("ContourDiffLib.Requirements")


def run_program(logic: ModuleType, program: str) -> object:
    """A translation whose command is a Python program, until it has ended."""
    run = logic.Translation([sys.executable, "-c", program])
    wait(run)
    return run


def wait(run: object) -> None:
    for _ in range(6000):
        if not run.poll():  # type: ignore[attr-defined]
            return
        time.sleep(0.05)
    pytest.fail("the process has not ended within five minutes")


def test_the_command_says_what_was_chosen(logic: ModuleType, tmp_path: Path) -> None:
    request = logic.Request(tmp_path / "a.nii", tmp_path / "mr")
    begin = ["py", "-m", "contourdiff", "translate", str(tmp_path / "a.nii"), str(tmp_path / "mr")]
    assert request.command("py") == [*begin, "--contrast", "t1", "--seed", "0", "--json"]
    label = tmp_path / "label.nii"
    request = logic.Request(*begin[4:], "t1,t2", "draft", 5, label, fidelity=True)
    words = ["--contrast", "t1,t2", "--seed", "5", "--json", "--draft", "--label", str(label)]
    assert request.command("py") == [*begin, *words, "--settings", "save_fidelity_map=true"]


def test_choices_are_those_of_the_command(logic: ModuleType) -> None:
    command = [sys.executable, "-m", "contourdiff", "translate", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for speed in filter(None, logic.SPEEDS.values()):
        assert f"--{speed} " in text
    for contrast in logic.CONTRASTS.values():
        assert contrast in re.findall(r"t1,t2|t1|t2_space|t2", text)


def test_progress_is_read_as_the_command_prints_it(logic: ModuleType) -> None:
    lines = (
        "a (1 of 1): 0 of 48 slices, 00:00 passed, ? left, ?slice/s",
        "a (1 of 1): 12 of 48 slices, 00:03 passed, 00:09 left, 4.00slice/s",
        "a: done, mr/a_mr.nii.gz; 3 of 48 slices; flicker 12",
    )
    program = f"import sys\nfor line in {lines!r}: print(line, file=sys.stderr)"
    run = run_program(logic, program)
    assert (run.done, run.total) == (12, 48)
    assert run.lines == [lines[2]]


def test_results_are_the_files_of_the_answer(logic: ModuleType) -> None:
    (result,) = run_program(logic, f"print('''{RESULT}''')").results()
    assert result.name == "T1"
    assert (result.mr, result.label) == (Path("/t/a_mr.nii.gz"), None)
    assert result.fidelity is None
    assert result.warnings == ("suspicious",)
    other = RESULT.replace('"contrast": null', '"contrast": "t2_space"')
    assert run_program(logic, f"print('''{other}''')").results()[0].name == "T2 SPACE"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ('print(\'{"error": "no CT", "results": []}\'); exit(1)', "no CT"),
        (
            'print(\'{"error": "1 of 1 cases failed", "results": [{"status": "failed", "error": "air"}]}\')',
            "air",
        ),
        ("import sys; sys.exit('error: expected a device')", "expected a device"),
        ("import sys; print('Killed', file=sys.stderr); sys.exit(9)", "with status 9: Killed"),
        ("import os; os.abort()", "with status -6: nothing was logged"),
    ],
)
def test_a_failure_says_why(program: str, reason: str, logic: ModuleType) -> None:
    run = run_program(logic, program)
    with pytest.raises(logic.TranslationError, match=f"{reason}$"):
        run.results()


def test_cancel_ends_the_process_and_those_that_it_started(
    logic: ModuleType, tmp_path: Path
) -> None:
    """Slicer's Python is started by a launcher."""
    beats = tmp_path / "beats"
    child = f"import time\nwhile True: open({str(beats)!r}, 'a').write('.'); time.sleep(0.02)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    run = logic.Translation([sys.executable, "-c", program])
    while not beats.exists():
        assert run.poll()
        time.sleep(0.05)
    run.cancel()
    run.cancel()
    wait(run)
    with pytest.raises(logic.TranslationError, match="cancelled"):
        run.results()
    time.sleep(0.2)
    count = beats.stat().st_size
    time.sleep(1)
    assert beats.stat().st_size == count


def test_a_process_that_does_not_end_is_killed(
    logic: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logic, "GRACE_S", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    program = f"{deaf}; open({str(tmp_path / 'up')!r}, 'w'); time.sleep(60)"
    run = logic.Translation([sys.executable, "-c", program])
    while not (tmp_path / "up").exists():
        time.sleep(0.05)
    run.cancel()
    wait(run)
    assert run._process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_real_translation_is_that_of_the_package(logic: ModuleType, tmp_path: Path) -> None:
    ct = write_phantom(tmp_path / "ct", "anna", shape=SHAPE, spacing_mm=SPACING_MM)
    label = tmp_path / "ct" / "labels" / "anna.nii.gz"
    request = logic.Request(ct, tmp_path / "mr", "t2", "draft", 3, label, fidelity=True)
    run = logic.Translation(request.command(sys.executable), request.contrast)
    wait(run)
    (result,) = run.results()
    assert result.name == "T2"
    assert (run.done, run.total) == (3, 3)
    options = {"contrast": "t2", "draft": True, "seed": 3, "progress": False}
    (expected,) = translate_path(ct, tmp_path / "expected", **options)
    np.testing.assert_array_equal(read_voxels(result.mr), read_voxels(expected.mr))
    np.testing.assert_array_equal(read_voxels(result.label), read_voxels(label))
    assert set(np.unique(read_voxels(result.fidelity))) <= {0, 1, 2, 3}


@pytest.mark.slow
def test_a_real_translation_that_is_cancelled_leaves_no_mr(
    logic: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logic, "GRACE_S", 120)
    ct = write_phantom(tmp_path / "ct", "anna", shape=SHAPE, spacing_mm=SPACING_MM)
    request = logic.Request(ct, tmp_path / "mr", speed="draft")
    command = [*request.command(sys.executable), "--settings", "num_inference_steps=900"]
    run = logic.Translation(command)
    while run.total == 0:
        assert run.poll(), run.lines
        time.sleep(0.1)
    run.cancel()
    wait(run)
    assert run._process.returncode == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "mr").rglob("*") if path.suffix != ".log"] == []


def test_only_what_is_missing_is_installed(requirements: ModuleType) -> None:
    listed = ["monai<2,>=1.5", "torch>=2.6", "SimpleITK>=2.3", "numpy>=1.26", "tqdm>=4.66"]
    listed += ["requests>=2", 'openvino>=2025; extra == "cpu"', 'tomli>=2; python_version < "3"']
    installed = {"numpy": "2.1.0", "tqdm": "4.0", "torch": "1.0"}
    assert requirements.wanted(listed, installed) == ["monai<2,>=1.5", "tqdm>=4.66"]


def test_what_slicer_has_is_not_replaced(requirements: ModuleType) -> None:
    lines = requirements.constraints().splitlines()
    assert f"numpy=={version('numpy')}" in lines
    assert f"torch=={version('torch')}" in lines
    assert not [line for line in lines if line.startswith("vtk")]


def test_this_environment_lacks_nothing_and_the_package_comes_from_here(
    requirements: ModuleType,
) -> None:
    assert requires("contourdiff")
    assert requirements.missing() == []
    assert requirements.package_source(MODULE / "ContourDiff.py") == str(REPOSITORY)
    assert requirements.package_source(Path("/opt/Slicer/ContourDiff.py")) == "contourdiff"


def test_names_of_volumes_become_names_of_files(logic: ModuleType) -> None:
    names = {"anna": "anna", "3: CT/axial": "3_CT_axial", "..": "ct", "é^x": "x", "": "ct"}
    for name, expected in names.items():
        assert logic.case_name(name) == expected
    assert len(logic.case_name("a" * 300)) == 100


def test_the_build_knows_every_file(library: Path) -> None:
    text = (MODULE / "CMakeLists.txt").read_text().replace("${MODULE_NAME}", "ContourDiff")
    listed = set(re.findall(r"^  (\S+\.(?:py|png))$", text, re.M))
    found = {str(path.relative_to(MODULE)) for path in MODULE.rglob("*") if path.is_file()}
    assert listed == {name for name in found if name.endswith((".py", ".png"))}
