# SPDX-License-Identifier: Apache-2.0
"""The files that a container is built from are enough, and its command needs no network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from contourdiff.phantom import write_phantom
from helpers.paths import REPOSITORY, program

CONTAINERFILE = REPOSITORY / "Containerfile"
HADOLINT = program("hadolint")
APPTAINER = REPOSITORY / "apptainer.def"
BUILT = re.compile(r"-c constraints\.txt \"\.\[(.*?)\]\"")


def copy(names: list[str], target: Path) -> Path:
    for name in names:
        source = REPOSITORY / name
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "eval", "*.egg-info")
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            shutil.copyfile(source, target / name)
    return target


def context_of_containerfile() -> list[str]:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


def context_of_apptainer() -> list[str]:
    return re.findall(r"^ +(\S+) /source/", APPTAINER.read_text(), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("context", [context_of_containerfile, context_of_apptainer])
def test_the_context_of_a_build_gives_a_wheel_with_the_weights(context, tmp_path: Path) -> None:
    names = context()
    assert "constraints.txt" in names
    source = copy(names, tmp_path / "source")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        held = set(opened.namelist())
    bundle = "contourdiff/bundles/contourdiff_ct2mr"
    for name in ("models/model.pt", "models/refiner_fast.pt", "configs/inference.json"):
        assert f"{bundle}/{name}" in held
    assert "contourdiff/report/templates/case.html" in held
    assert "contourdiff/deploy/zoo/card.md" in held


def test_both_recipes_install_the_same() -> None:
    for path in (CONTAINERFILE, APPTAINER):
        assert BUILT.findall(path.read_text()) == ["cpu,report"]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no namespaces on this system")
@pytest.mark.slow
def test_a_translation_needs_no_network(tmp_path: Path) -> None:
    isolated = ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("namespaces are not permitted")
    write_phantom(tmp_path / "ct", shape=(2, 96, 96), spacing_mm=(90.0, 2.6, 2.6))
    command = [sys.executable, "-m", "contourdiff", "translate", "ct", "mr", "--draft"]
    environment = os.environ | {"HOME": "/nonexistent", "MPLCONFIGDIR": str(tmp_path / "cache")}
    subprocess.run([*isolated, *command], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "mr" / "phantom_mr.nii.gz").is_file()


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_has_no_advice() -> None:
    subprocess.run([HADOLINT, CONTAINERFILE], check=True)
