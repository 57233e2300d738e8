# SPDX-License-Identifier: Apache-2.0
"""What the pages show: Python runs as written, and every command is one that the program takes."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from contourdiff import cli
from contourdiff.bundle import config_files, read_config
from contourdiff.cli.commands import parse_settings
from contourdiff.deploy.bundle_export import export_bundle
from contourdiff.deploy.network_export import export_networks
from helpers import REPOSITORY, ball_ct, make_mr, write_nifti

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PAGES.append(REPOSITORY / "bundles" / "contourdiff_ct2mr" / "docs" / "README.md")
BASES = {"translate": "inference", "train": "train", "quality": "inference", "gap": "inference", "agreement": "train"}
"""Config that the settings of a command belong to."""
EXCERPTS = ("style", "monai_label", "scale")
"""Pages whose Python is parts of functions, or for another program or a cluster."""


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        if language == "python" and page.stem in EXCERPTS:
            continue
        for number, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)):
            yield f"{page.stem} {number}", text


def commands(program: str) -> list[str]:
    """Every command of a program in the shell blocks, without the rest of its line."""
    found = []
    for _, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            found += re.findall(rf"(?:^|; do |&& (?:\S*/)?|\s)({program} .*?)(?:; done|&&|\s#|$)", line.split("  #")[0])
    return found


def test_the_pages_show_commands_and_python() -> None:
    assert len(commands("contourdiff")) > 15
    assert len(commands("python -m monai.bundle run")) > 8
    assert len(list(blocks("python"))) > 2


@pytest.mark.parametrize("line", commands("contourdiff"))
def test_the_command_line_takes_what_the_pages_show(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line.replace("$seed", "1"))[1:]
    if words[0].startswith("--"):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0
        return
    values = vars(cli.parser().parse_args(words))
    if (base := BASES.get(values["command"])) is not None:
        overlays = [name for name in values["overlays"] if base == "inference" or name.startswith("train")]
        overlays = [name for name in overlays if not name.endswith(".json")]  # the reader's own
        read_config(config_files(overlays=overlays, base=base), parse_settings(values["settings"]))
        read_config(config_files(), parse_settings(values.get("translation") or []))


@pytest.mark.parametrize("line", commands("python -m monai.bundle run"))
def test_the_bundle_takes_what_the_pages_show(line: str) -> None:
    words = shlex.split(line)[4:]
    words = words[1:] if words[0] == "inference" else words
    options = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    text = options.pop("config_file").replace("$C", "bundles/contourdiff_ct2mr/configs")
    files = ast.literal_eval(text) if text.startswith("[") else [text]
    roots = (REPOSITORY, REPOSITORY / "bundles", REPOSITORY / "bundles" / "contourdiff_ct2mr")
    found = {file: next((root / file for root in roots if (root / file).is_file()), None) for file in files}
    own = [str(path) for path in found.values() if path is not None]
    assert [file for file, path in found.items() if path is None] in ([], ["paper.json"])
    assert all(word.startswith("--") for word in words[::2])
    read_config(own, options)


@pytest.mark.parametrize(("name", "text"), [pytest.param(*block, id=block[0]) for block in blocks("json")])
def test_json_is_json(name: str, text: str) -> None:
    json.loads(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with one small CT and its label, as the pages suppose."""
    folder = tmp_path_factory.mktemp("docs")
    ct, affine = ball_ct((4, 60, 56)), np.diag([4.0, 2.2, 2.2, 1.0])
    write_nifti(folder / "ct" / "anna.nii.gz", ct, affine)
    write_nifti(folder / "ct" / "labels" / "anna.nii.gz", (ct > 200).astype(np.uint8), affine)
    write_nifti(folder / "mr" / "anna_label.nii.gz", (ct > 200).astype(np.uint8), affine)
    write_nifti(folder / "mr" / "anna_mr.nii.gz", np.clip(ct + 100, 0, 255).astype(np.uint8), affine)
    make_mr(folder / "mr_train")
    export_bundle(folder / "contourdiff_ct2mr")
    export_networks(folder / "out", "torchscript")
    return folder


@pytest.mark.parametrize(("name", "text"), [pytest.param(*block, id=block[0]) for block in blocks("python")])
def test_python_runs_as_written(name: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if "scripts" in text:  # a package of that name stays out of this process
        subprocess.run([sys.executable, "-c", text], check=True)
        return
    exec(compile(text, name, "exec"), {"__name__": "page"})
