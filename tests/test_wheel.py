# SPDX-License-Identifier: Apache-2.0
"""The wheel holds all packages and the bundle, so that it works from anywhere."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages

from contourdiff.bundle import BUNDLE_NAME
from contourdiff.weights import sha256_of
from helpers import CONFIGS, REPOSITORY


def test_every_package_is_listed() -> None:
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    assert listed == {
        *find_packages(str(REPOSITORY / "plugin")),
        f"contourdiff.bundles.{BUNDLE_NAME}",
    }


def test_an_installed_wheel_finds_its_bundle_from_anywhere(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip"]
    build = [
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "-q",
        "-w",
        str(tmp_path),
        str(REPOSITORY),
    ]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--target", str(installed), str(wheel)], check=True
    )
    (tmp_path / "elsewhere").mkdir()
    result = subprocess.run(
        [sys.executable, "-m", "contourdiff", "info"],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    bundle = installed / "contourdiff" / "bundles" / BUNDLE_NAME
    assert Path(lines["bundle"]).samefile(bundle)
    assert lines["model.pt"] == sha256_of(CONFIGS.parent / "models" / "model.pt")
    assert (bundle / "docs" / "images").is_dir()
    package = REPOSITORY / "plugin" / "contourdiff" / "report"
    for folder in ("assets", "templates"):
        names = {path.name for path in (package / folder).iterdir()}
        assert names == {
            path.name for path in (installed / "contourdiff" / "report" / folder).iterdir()
        }
