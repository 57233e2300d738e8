# SPDX-License-Identifier: Apache-2.0
"""The source distribution holds the repository, and its wheel works from anywhere."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from setuptools import find_packages

from contourdiff.bundle import BUNDLE_NAME
from contourdiff.weights import sha256_of
from helpers.paths import CONFIGS, REPOSITORY

LEFT_BY_USE = (
    ".*_cache",
    ".git",
    ".venv*",
    "__pycache__",
    "*.egg-info",
    "build",
    "dist",
    "example",
    "runs",
)
LEFT_BY_THE_LABEL_APP = ("bin", "logs", "model")
FOLDERS = (".ci", "bundles", "docs", "plugin", "tests")
FILES = (
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "constraints.txt",
    "mkdocs.yml",
    "pyproject.toml",
    "setup.cfg",
)

LOCATIONS = """
import contourdiff_lab
import contourdiff.transforms
from contourdiff.cli import main

print(contourdiff_lab.__file__)
print(contourdiff.transforms.__file__)
main(["info"])
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("source")
    copy = folder / "repository"
    shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(*LEFT_BY_USE))
    for name in LEFT_BY_THE_LABEL_APP:
        shutil.rmtree(copy / "plugin" / "label_app" / name, ignore_errors=True)
    build = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (archive,) = (copy / "dist").iterdir()
    shutil.unpack_archive(archive, folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the wheel that is built from the source distribution."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(folder), str(source)], check=True)
    return folder


def run_installed(installed: Path, folder: Path, *words: str) -> str:
    """What a program prints that finds the installed package first, started in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def files_below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_every_package_is_listed() -> None:
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    packages = find_packages(str(REPOSITORY / "plugin"), include=["contourdiff*"])
    assert listed == {*packages, f"contourdiff.bundles.{BUNDLE_NAME}"}


@pytest.mark.slow
def test_the_source_distribution_holds_tests_docs_and_the_label_app(source: Path) -> None:
    repository = source.parents[1] / "repository"
    for folder in FOLDERS:
        expected = {
            path for path in files_below(repository / folder) if ".egg-info" not in str(path)
        }
        assert expected
        assert expected - files_below(source / folder) == set()
    assert [name for name in FILES if not (source / name).is_file()] == []


@pytest.mark.slow
def test_an_installed_wheel_finds_its_packages_and_its_bundle_from_anywhere(
    installed: Path, tmp_path: Path
) -> None:
    printed = run_installed(installed, tmp_path, "-c", LOCATIONS)
    lab, transforms, *info = printed.splitlines()
    assert Path(lab).is_relative_to(installed)
    assert Path(transforms).is_relative_to(installed)
    lines = dict(line.split(": ", 1) for line in info)
    bundle = installed / "contourdiff" / "bundles" / BUNDLE_NAME
    assert Path(lines["bundle"]).samefile(bundle)
    assert lines["model.pt"] == sha256_of(CONFIGS.parent / "models" / "model.pt")


@pytest.mark.slow
def test_a_wheel_holds_all_files_of_packages_and_bundle(installed: Path) -> None:
    for package in ("contourdiff", "contourdiff_lab"):
        expected = files_below(REPOSITORY / "plugin" / package)
        compiled = {path for path in expected if path.suffix == ".pyc"}
        assert expected - compiled - files_below(installed / package) == set()
    bundle = installed / "contourdiff" / "bundles" / BUNDLE_NAME
    assert files_below(CONFIGS) == files_below(bundle / "configs")
    assert (bundle / "docs" / "images").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["contourdiff", "contourdiff-lab"])
def test_an_installed_command_shows_its_help(installed: Path, tmp_path: Path, command: str) -> None:
    printed = run_installed(installed, tmp_path, str(installed / "bin" / command), "--help")
    assert printed.startswith(f"usage: {command} ")


@pytest.mark.slow
def test_the_page_of_the_package_index_has_addresses_and_no_relative_links(installed: Path) -> None:
    (folder,) = installed.glob("contourdiff-*.dist-info")
    metadata = PathDistribution(folder).metadata
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert any("https://" in address for address in metadata.get_all("Project-URL"))
    links = re.findall(r"\]\((.*?)\)", metadata.get_payload())
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
