# SPDX-License-Identifier: Apache-2.0
"""Python and commands of the pages run as written, by Sybil; ``<!-- skip: next "reason" -->`` leaves a block out."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest import SkipTest

import numpy as np
import pytest
import SimpleITK as sitk
from diffusers import UNet2DModel
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from contourdiff import cli
from contourdiff.bundle import config_files, read_config
from contourdiff.cli.commands import parse_settings
from contourdiff.cli.program import PROGRAM
from contourdiff.cli.trust import config_digest
from contourdiff.deploy.bundle_export import export_bundle
from contourdiff_lab import commands as lab
from helpers.dicom import write_series
from helpers.paths import CONFIGS, REPOSITORY
from helpers.volumes import ball_ct, make_mr, write_nifti

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    CONFIGS.parent / "docs" / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
PROGRAM_NAMES = r"contourdiff-lab|contourdiff|python -m monai\.bundle run"
COMMAND = re.compile(rf"(?:^|; do |&& (?:\S*/)?)((?:{PROGRAM_NAMES}) .*?)(?:; done|&&|\s#|$)")
BASES = {
    "translate": "inference",
    "train": "train",
    "quality": "inference",
    "gap": "inference",
    "agreement": "train",
}
"""Config that the settings of a command belong to."""
LAB_CONFIGS = Path(lab.__file__).parent / "configs"
QUICK = (
    "num_inference_steps",
    "num_refinement_steps",
    "candidates",
    "max_rounds",
    "batch_size",
    "preview#columns",
)
"""Settings that are 1 here, so that a command of the pages takes seconds; most cases have a single slice."""
QUICK_STEPS = {"export": "2", "transfer": "2"}
"""Commands whose ``--steps``, if there are any, are so many here."""
LARGEST_PAGE = 15_000
"""Bytes of a page of instructions; changelog and lab pages are records, and may be longer."""
L4 = 28
"""TotalSegmentator's number of a vertebra."""


def commands_of(text: str) -> list[str]:
    """Commands of the package in a shell block, without comments and what else is in their lines."""
    lines = (
        text.replace("\\\n", " ").replace("$C/", f"{CONFIGS}/").replace("$seed", "1").splitlines()
    )
    return [command.strip() for line in lines for command in COMMAND.findall(line)]


def quick(arguments: list[str]) -> list[str]:
    """A command with few steps, if it translates, exports or trains."""
    steps = QUICK_STEPS.get(arguments[1])
    if steps and "--steps" in arguments:
        arguments[arguments.index("--steps") + 1] = steps
    if arguments[1] == "translate":
        position = len(arguments)
        if "--settings" in arguments:
            position = arguments.index("--settings")
            del arguments[position]
        return [
            *arguments[:position],
            "--settings",
            *[f"{name}=1" for name in QUICK],
            *arguments[position:],
        ]
    if arguments[0] == "python" and "inference.json" in " ".join(arguments):
        for name in QUICK:
            arguments += [f"--{name}", "1"]
    return arguments


def run_shell(example: Example) -> None:
    """Run the commands of a block, one after the other, in the working directory."""
    for line in commands_of(example.parsed):
        if "DIGEST" in line:
            line = line.replace("DIGEST", config_digest([Path("converted/paper.json")]))
        program, *arguments = quick(shlex.split(line))
        if program == "python":
            subprocess.run([sys.executable, *arguments], check=True)
        elif program == "contourdiff":
            cli.main(arguments)
        else:
            lab.main(arguments)


def run_python(example: Example) -> None:
    """Run a block in this process, or, where it imports a bundle's ``scripts``, in one of its own."""
    if "scripts" in example.parsed:
        subprocess.run([sys.executable, "-c", example.parsed], check=True)
    else:
        exec(compile(example.parsed, example.path, "exec"), {"__name__": "page"})


def read_json(example: Example) -> None:
    """Read a block, which fails unless it is JSON."""
    json.loads(example.parsed)


def examples(page: Path) -> Iterator[Example]:
    parsers = (
        CodeBlockParser("python", run_python),
        CodeBlockParser("bash", run_shell),
        CodeBlockParser("json", read_json),
        SkipParser(),
    )
    return Document.parse(str(page), *parsers).examples()


def shown_commands() -> list[str]:
    """Every command that the pages show, also of blocks that are left out."""
    shown = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            shown += commands_of(block)
    return list(dict.fromkeys(shown))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the pages suppose: a CT and its label, its translation, real MR, an export, weights."""
    root = tmp_path_factory.mktemp("docs")
    ct = ball_ct((3, 60, 56))  # one slice has a contour
    affine = np.diag([4.0, 2.3, 2.3, 1.0])
    body = (ct > -500).astype(np.uint8)
    gray = np.clip(ct + 100, 0, 255).astype(np.uint8)
    for name in ("ct/anna", "ct/torso", "ct"):
        write_nifti(root / f"{name}.nii.gz", ct, affine)
    for name in (
        "ct/labels/anna",
        "ct/labels/torso",
        "mr/anna_label",
        "mr_t1/b_label",
        "mr_t2/c_label",
    ):
        write_nifti(root / f"{name}.nii.gz", body * np.uint8(L4), affine)
    for name in ("mr/anna_mr", "mr_t1/b_mr", "mr_t2/c_mr", "mr_labelled/b_t1_1_mr"):
        write_nifti(root / f"{name}.nii.gz", gray, affine)
    write_nifti(root / "mr_labelled" / "b_t1_1_label.nii.gz", body * np.uint8(2), affine)
    for source, target in (("ct/anna", "ct.nrrd"), ("ct/labels/anna", "segmentation.nrrd")):
        sitk.WriteImage(sitk.ReadImage(str(root / f"{source}.nii.gz")), str(root / target))
    np.save(root / "ct_slice.npy", ball_ct((3, 240, 220))[1])
    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    write_series(root / "dicom", ball_ct((4, 92, 180)), orientation=sagittal)
    make_mr(root / "mr_train")
    (root / "table.md").write_text("# Table\n")
    classes = {"classes": ["bone"], "ct": {"bone": [L4]}, "mr": {"bone": [2]}}
    (root / "classes.json").write_text(json.dumps(classes))
    paper = UNet2DModel(
        32,
        in_channels=2,
        out_channels=1,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    paper.save_pretrained(root / "ContourDiff-CT-MRI-ddim" / "model" / "unet")
    export_bundle(root / "contourdiff_ct2mr")
    return root


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them for a page, as the working directory."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    (tmp_path / "bundles").symlink_to(REPOSITORY / "bundles")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_examples_of_a_page_run_as_written(page: Path, folder: Path) -> None:
    if page.parent.parent == CONFIGS.parent:  # the model card supposes the bundle's folder
        (folder / "configs").symlink_to(CONFIGS)
    for example in examples(page):
        with suppress(SkipTest):
            example.evaluate()


def test_a_block_that_is_left_out_is_tested_elsewhere_or_says_why() -> None:
    for page in PAGES:
        for reason in re.findall(r"<!-- skip: next (.*?) -->", page.read_text(encoding="utf-8")):
            assert ast.literal_eval(reason)
            for name in re.findall(r"tests/[\w/]+\.py", reason):
                assert (REPOSITORY / name).is_file(), (page, name)


def test_no_page_of_instructions_is_longer_than_a_reader_reads() -> None:
    pages = [*(REPOSITORY / "docs").glob("*.md")]
    sizes = {page.name: page.stat().st_size for page in pages if page.name != "CHANGELOG.md"}
    assert "use.md" in sizes
    too_long = {name: size for name, size in sizes.items() if size > LARGEST_PAGE}
    assert not too_long, f"expected at most {LARGEST_PAGE} bytes, got {too_long}; split the page"


def test_the_pages_have_examples_that_run() -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    blocks = sum(len(re.findall(r"```(?:python|bash)\n", text)) for text in texts)
    skipped = sum(text.count("<!-- skip: next") for text in texts)
    assert blocks - skipped > 20
    assert len(shown_commands()) > 40


@pytest.mark.parametrize("line", shown_commands())
def test_the_programs_take_what_the_pages_show(line: str) -> None:
    program, *words = shlex.split(line)
    if program == "python":
        check_bundle_command(words[3:])
        return
    parser = PROGRAM.parser() if program == "contourdiff" else lab.LAB.parser()
    if words[0].startswith("--"):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(words)
        assert stop.value.code == 0
        return
    values = vars(parser.parse_args(words))
    base = BASES.get(values["command"])
    if base is not None:
        overlays = []
        for name in values.get("overlays", []):
            of_the_reader = name.endswith(".json")
            if not of_the_reader and (base == "inference" or name.startswith("train")):
                overlays.append(name)
        files = config_files(overlays=overlays, base=base)
        read_config(files, parse_settings(values["settings"]))
        read_config(config_files(), parse_settings(values.get("translation") or []))


def check_bundle_command(words: list[str]) -> None:
    """The configs exist, and have the settings of a ``python -m monai.bundle run``."""
    if words[0] == "inference":
        words = words[1:]
    assert all(word.startswith("--") for word in words[::2])
    names = [word.removeprefix("--") for word in words[::2]]
    options = dict(zip(names, words[1::2], strict=True))
    options.pop("meta_file", None)  # of MONAI, no setting
    text = options.pop("config_file")
    files = []
    for name in ast.literal_eval(text) if text.startswith("[") else [text]:
        paths = [root / Path(name).name for root in (CONFIGS, LAB_CONFIGS)]
        existing = [str(path) for path in paths if path.is_file()]
        assert existing or name == "paper.json", name  # that one is the reader's
        files += existing
    read_config(files, options)
