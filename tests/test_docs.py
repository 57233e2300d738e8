# SPDX-License-Identifier: Apache-2.0
"""What the pages show: Python and all short commands run as written, and the program takes every other command."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from diffusers import UNet2DModel

from contourdiff import cli
from contourdiff.bundle import config_files, read_config
from contourdiff.cli.commands import parse_settings
from contourdiff.cli.trust import config_digest
from contourdiff.deploy.bundle_export import export_bundle
from contourdiff.deploy.network_export import export_networks
from helpers import CONFIGS, REPOSITORY, ball_ct, make_mr, write_nifti, write_series

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PAGES.append(REPOSITORY / "bundles" / "contourdiff_ct2mr" / "docs" / "README.md")
BASES = {
    "translate": "inference",
    "train": "train",
    "quality": "inference",
    "gap": "inference",
    "agreement": "train",
    "baseline": "cyclegan",
}
"""Config that the settings of a command belong to."""
EXCERPTS = ("style", "monai_label", "scale")
"""Pages whose Python is parts of functions, or for another program or a cluster."""
NOT_RUN = {
    "contourdiff (table|train) ": "trains networks: tests/evaluation/test_experiment.py, tests/test_cli.py",
    "(train|cpu).json": "trains networks: tests/training/test_training.py, tests/test_cli.py",
    "evaluate.json": "requires a trained network: tests/training/test_segmentation_training.py",
    "contourdiff (steps|agreement) ": "minutes: tests/evaluation/test_solver_comparison.py, test_held_out.py beside it",
    "contourdiff example ": "two minutes: run by tests/test_shipped.py",
    "neighbor_guided|hip_thigh|single|my_training": "requires weights of the reader's own: tests/test_bundle.py",
    "contourdiff baseline ": "trains networks: tests/baselines/test_training.py",
    "--(workers|scheduler) ": "several processes: tests/test_cohort.py, tests/data/test_bids.py",
    "generative.pt": "requires weights of the reader's own: tests/test_checkpoints.py",
    "--serve": "serves until it is interrupted: tests/report/test_server.py, tests/test_cli.py",
    "--extractor": "requires a network of the reader's own: tests/evaluation/test_folder_quality.py",
}
"""Commands that no test runs as they are, and why: by what they contain."""
L4 = 28
"""TotalSegmentator's number of a vertebra."""
PREPARED = ("out", "converted")
"""Folders that a command takes from the one before it."""


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        if language == "python" and page.stem in EXCERPTS:
            continue
        for number, text in enumerate(
            re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
        ):
            yield f"{page.stem} {number}", text


def commands(program: str) -> list[str]:
    """Every command of a program in the shell blocks, without the rest of its line."""
    return [command for _, command in commands_by_page(program)]


def commands_by_page(program: str) -> list[tuple[str, str]]:
    found = []
    for name, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            lines = re.findall(
                rf"(?:^|; do |&& (?:\S*/)?|\s)({program} .*?)(?:; done|&&|\s#|$)",
                line.split("  #")[0],
            )
            found += [(name.split()[0], command.strip()) for command in lines]
    return found


def run_by_page() -> dict[str, list[str]]:
    """Commands of each page that are run, in the page's order; one that several pages show, on the first."""
    pages: dict[str, list[str]] = {}
    seen: set[str] = set()
    for page, line in commands_by_page("contourdiff") + commands_by_page(
        "python -m monai.bundle run"
    ):
        if line not in seen and not any(re.search(pattern, line) for pattern in NOT_RUN):
            pages.setdefault(page, []).append(line)
        seen.add(line)
    return pages


def test_the_pages_show_commands_and_python() -> None:
    assert len(commands("contourdiff")) > 15
    assert len(commands("python -m monai.bundle run")) > 8
    assert len(list(blocks("python"))) > 2


@pytest.mark.parametrize("line", commands("contourdiff"))
def test_the_command_line_takes_what_the_pages_show(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line.replace("$seed", "1"))[1:]
    if words[0].startswith("--"):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0
        return
    values = vars(cli.parser().parse_args(words))
    if (base := BASES.get(values["command"])) is not None:
        overlays = [
            name
            for name in values.get("overlays", [])
            if base == "inference" or name.startswith("train")
        ]
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
    found = {
        file: next((root / file for root in roots if (root / file).is_file()), None)
        for file in files
    }
    own = [str(path) for path in found.values() if path is not None]
    assert [file for file, path in found.items() if path is None] in ([], ["paper.json"])
    assert all(word.startswith("--") for word in words[::2])
    read_config(own, options)


@pytest.mark.parametrize(
    ("name", "text"), [pytest.param(*block, id=block[0]) for block in blocks("json")]
)
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
    write_nifti(
        folder / "mr" / "anna_mr.nii.gz", np.clip(ct + 100, 0, 255).astype(np.uint8), affine
    )
    make_mr(folder / "mr_train")
    export_bundle(folder / "contourdiff_ct2mr")
    export_networks(folder / "out", "torchscript")
    return folder


@pytest.mark.parametrize(
    ("name", "text"), [pytest.param(*block, id=block[0]) for block in blocks("python")]
)
def test_python_runs_as_written(
    name: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    if "scripts" in text:  # a package of that name stays out of this process
        subprocess.run([sys.executable, "-c", text], check=True)
        return
    exec(compile(text, name, "exec"), {"__name__": "page"})


@pytest.fixture
def inputs(folder: Path, tmp_path: Path) -> Path:
    """A copy of the working directory, with the files that the pages name beside it."""
    shutil.copytree(folder, tmp_path / "inputs")
    inputs = tmp_path / "inputs"
    for name in PREPARED:
        shutil.rmtree(inputs / name, ignore_errors=True)
    ct = nib.load(inputs / "ct" / "anna.nii.gz")
    body = np.asarray(ct.dataobj) > -500
    for name, label in (
        ("ct/labels/anna", L4),
        ("mr/anna_label", L4),
        ("mr_labelled/b_t1_1_label", 2),
    ):
        write_nifti(inputs / f"{name}.nii.gz", body * np.uint8(label), ct.affine)
    for source, targets in (
        ("ct/anna.nii.gz", ("ct.nii.gz", "ct.nrrd", "ct/torso.nii.gz")),
        ("ct/labels/anna.nii.gz", ("segmentation.nrrd", "ct/labels/torso.nii.gz")),
        (
            "mr/anna_mr.nii.gz",
            ("mr_t1/b_mr.nii.gz", "mr_t2/c_mr.nii.gz", "mr_labelled/b_t1_1_mr.nii.gz"),
        ),
        ("mr/anna_label.nii.gz", ("mr_t1/b_label.nii.gz", "mr_t2/c_label.nii.gz")),
    ):
        for target in targets:
            (inputs / target).parent.mkdir(exist_ok=True)
            sitk.WriteImage(sitk.ReadImage(str(inputs / source)), str(inputs / target))
    write_series(
        inputs / "dicom", ball_ct((4, 92, 180)), orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    )
    (inputs / "table.md").write_text("# Table\n")
    (inputs / "classes.json").write_text(
        '{"classes": ["bone"], "ct": {"bone": [28]}, "mr": {"bone": [2]}}'
    )
    return inputs


@pytest.mark.parametrize(
    ("page", "lines"), [pytest.param(*item, id=item[0]) for item in run_by_page().items()]
)
def test_commands_run_as_written(
    page: str, lines: list[str], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "ContourDiff-CT-MRI-ddim" / "model"
    if page == "train":
        UNet2DModel(32, 2, 1, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2,
                    up_block_types=("UpBlock2D",) * 2, layers_per_block=1).save_pretrained(model / "unet")  # fmt: skip
    for number, line in enumerate(lines):
        work = tmp_path / str(
            number
        )  # every command starts from the same files, and what PREPARED names
        shutil.copytree(inputs, work)
        for name in (*PREPARED, "ContourDiff-CT-MRI-ddim"):
            source = tmp_path / (str(number - 1) if name in PREPARED else "") / name
            if source.is_dir():
                shutil.copytree(source, work / name)
        (work / "bundles").symlink_to(REPOSITORY / "bundles")
        if "['configs/" in line:
            (work / "configs").symlink_to(CONFIGS)
        monkeypatch.chdir(work)
        before = set(work.rglob("*"))
        if "DIGEST" in line:
            line = line.replace("DIGEST", config_digest([Path("converted/paper.json")]))
        words = shlex.split(line.replace("$seed", "1"))
        if words[0] == "python":
            done = subprocess.run(
                [sys.executable, *words[1:]], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr[-2000:]
        else:
            cli.main(words[1:])
        assert {path for path in set(work.rglob("*")) - before if path.is_file()}, line


def test_what_is_not_run_is_tested_elsewhere() -> None:
    shown = [
        line
        for program in ("contourdiff", "python -m monai.bundle run")
        for line in commands(program)
    ]
    for pattern, reason in NOT_RUN.items():
        assert any(re.search(pattern, line) for line in shown), pattern
        for name in re.findall(r"tests/\S+\.py", reason):
            assert (REPOSITORY / name).is_file()
    assert sum(map(len, run_by_page().values())) > 15
