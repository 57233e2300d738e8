# SPDX-License-Identifier: Apache-2.0
"""What goes to the model zoo runs without the package, and is laid out as the zoo's scripts read it."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
import yaml

from contourdiff import cli
from contourdiff.bundle import BUNDLE_NAME, find_bundle, run_inference_config
from contourdiff.deploy.zoo_export import export_to_zoo
from contourdiff.phantom import write_phantom
from contourdiff.weights import read_weights, sha256_of
from helpers.paths import REPOSITORY
from helpers.volumes import read_voxels

NAME = "lumbar_ct_mr_translation"
URL = "https://example.org/files"
SECTIONS = [
    "Authors",
    "Tags",
    "Model Description",
    "Data",
    "Preprocessing",
    "Performance",
    "System Configuration",
    "Limitations",
    "Citation Info",
    "References",
]
"""Of docs/readme_template.md of the zoo, in its order."""
WITHOUT_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("contourdiff", "SimpleITK", "pydicom"):
            raise ModuleNotFoundError(f"{name} is not installed")

sys.meta_path.insert(0, Absent())
"""
UTILS = """
def check_workflow(workflow, check_properties=False):
    workflow.initialize()
    assert not workflow.check_properties()
    workflow.run()
    workflow.finalize()
"""
"""In place of the zoo's ci/unit_tests/utils.py."""
QUICK = {"num_inference_steps": 2, "num_refinement_steps": 1, "candidates": 1, "max_rounds": 1}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is exported of the bundle when it has weights of another anatomy, too."""
    bundle = tmp_path_factory.mktemp("bundle") / BUNDLE_NAME
    shutil.copytree(find_bundle(), bundle, ignore=shutil.ignore_patterns("eval"))
    (bundle / "models" / "hip_thigh.pt").write_bytes(b"of another anatomy")
    target = tmp_path_factory.mktemp("zoo") / "clone"
    return export_to_zoo(target, bundle, name=NAME, files_url=URL)


@pytest.fixture(scope="module")
def folder(zoo: Path) -> Path:
    return zoo / "models" / NAME


def run(arguments: list[str], cwd: Path, place: Path) -> str:
    """Run Python as if the package were not installed; the end of what it printed, if it failed."""
    place.mkdir()
    (place / "sitecustomize.py").write_text(WITHOUT_PACKAGE)
    (place / "utils.py").write_text(UTILS)
    environment = os.environ | {"PYTHONPATH": str(place)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    return "" if done.returncode == 0 else done.stderr[-3000:]


@pytest.mark.slow
def test_the_unit_test_passes_without_the_package(zoo: Path, tmp_path: Path) -> None:
    assert run([f"ci/unit_tests/test_{NAME}.py"], zoo, tmp_path / "path") == ""


@pytest.mark.slow
def test_the_mr_is_that_of_the_package(folder: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "ct", shape=(5, 112, 128), spacing_mm=(38.0, 2.2, 2.2))
    device = {"device": "$torch.device('cpu')", "acceleration": "lean", "amp": False}
    settings = {**QUICK, **device, "contrast": "t2"}
    run_inference_config(tmp_path / "ct", tmp_path / "here", **settings)
    command = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    settings |= {"dataset_dir": tmp_path / "ct", "output_dir": tmp_path / "there"}
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    assert run(command, folder, tmp_path / "path") == ""
    expected = read_voxels(tmp_path / "here" / "phantom_mr.nii.gz")
    assert expected.std() > 10
    mr = read_voxels(tmp_path / "there" / "phantom_mr.nii.gz")
    np.testing.assert_allclose(mr, expected, atol=0.01)


def test_the_code_is_of_inference_and_training_alone(folder: Path) -> None:
    code = folder / "scripts"
    modules = {path.relative_to(code).with_suffix("").as_posix() for path in code.rglob("*.py")}
    assert {"networks", "inference/inferer", "training/handlers"} <= modules
    for part in ("report", "phantom", "bids", "dicom", "bundle", "onnx", "cli"):
        assert not any(part in module for module in modules), part
    for path in folder.rglob("*"):
        if path.suffix in (".py", ".json"):
            assert "contourdiff." not in path.read_text(), path


def test_required_packages_are_those_that_the_code_imports(folder: Path) -> None:
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    required = metadata["required_packages_version"]
    distributions = packages_distributions()
    imported = set()
    for path in (folder / "scripts").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                imported |= set(distributions.get(name.split(".")[0], []))
    optional = {"openvino", "safetensors"}  # imported where they are installed, or asked for
    imported = {name for name in imported if name in required or name not in optional}
    by_monai = {
        "fire",
        "tensorboard",
        "einops",
        "nibabel",
    }  # imported by MONAI for what configs name
    assert imported - {"contourdiff"} | by_monai == {*required, "monai", "torch", "numpy"}
    pins = {}
    for line in (REPOSITORY / "constraints.txt").read_text().split():
        name, found, version = line.partition("==")
        if found:
            pins[name] = version
    for name, versions in required.items():
        assert versions.endswith(".*"), "the zoo writes == before it"
        assert pins[name].startswith(versions.removesuffix("*")), name


def test_large_files_are_named_with_their_hashes(folder: Path) -> None:
    listed = yaml.safe_load((folder / "large_files.yml").read_text())["large_files"]
    large = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1e6]
    assert {entry["path"] for entry in listed} == {
        path.relative_to(folder).as_posix() for path in large
    }
    assert len(large) == 6
    for entry in listed:
        assert entry["url"] == f"{URL}/{entry['path']}"
        assert entry["hash_type"] == "sha256"
        assert entry["hash_val"] == sha256_of(folder / entry["path"])
    for path in (folder / "models").glob("*.pt"):
        tensors = read_weights(path)
        safe = read_weights(path.with_suffix(".safetensors"))
        assert safe.keys() == tensors.keys()
        assert all(safe[key].equal(tensors[key]) for key in tensors)


def test_both_cards_have_the_sections_of_the_zoo_and_no_dead_link(folder: Path) -> None:
    for card in (folder / "README.md", folder / "docs" / "README.md"):
        text = card.read_text()
        assert "{{" not in text
        headings = re.findall(r"^#+ \**([^*\n]+?)\**$", text, re.MULTILINE)
        assert [heading for heading in headings if heading in SECTIONS] == SECTIONS
        targets = re.findall(r"\]\(([^)]*)\)", text)
        assert sum(target.endswith(".png") for target in targets) == 3
        for target in targets:
            assert target.startswith("https://") or (card.parent / target).is_file(), target
        for config in re.findall(r"configs/\w+\.json", text):
            assert (folder / config).is_file(), config


@pytest.mark.parametrize(("row", "measure"), [("F1", "contour_f1_within_1px"), ("SSIM", "ssim")])
def test_the_card_reports_the_figures_of_the_metadata(folder: Path, row: str, measure: str) -> None:
    metrics = json.loads((folder / "configs" / "metadata.json").read_text())["eval_metrics"]
    card = (folder / "README.md").read_text()
    (line,) = re.findall(rf"^\| {row}\b.*$", card, re.MULTILINE)
    figures = [float(figure) for figure in re.findall(r"\| ([\d.]+) ±", line)]
    contrasts = ("t1", "t2", "t2_space")
    assert figures == [metrics[f"{measure}_held_out_{contrast}"] for contrast in contrasts]


def test_the_card_at_the_root_has_the_front_matter_of_hugging_face(folder: Path) -> None:
    _, front_matter, _ = (folder / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front_matter)
    assert facts["license"] == "apache-2.0"
    assert facts["library_name"] == "monai"
    assert facts["pipeline_tag"] == "image-to-image"
    assert all(facts[name] for name in ("tags", "datasets", "metrics"))


@pytest.mark.skipif(importlib.util.find_spec("black") is None, reason="black is not installed")
def test_black_changes_nothing(zoo: Path) -> None:
    black = ["black", "--line-length=120", "--skip-magic-trailing-comma", "--check", "--quiet"]
    subprocess.run([sys.executable, "-m", *black, zoo], check=True)


def test_configs_are_laid_as_the_zoo_lays_them(folder: Path) -> None:
    files = sorted(path.name for path in (folder / "configs").iterdir())
    assert files == [
        "cpu.json",
        "fast.json",
        "inference.json",
        "logging.conf",
        "metadata.json",
        "multi_gpu_train.json",
        "train.json",
        "train_refiner.json",
    ]
    for path in (folder / "configs").glob("*.json"):
        text = path.read_text()
        assert text == json.dumps(json.loads(text), indent=4) + "\n", path.name
    inference = json.loads((folder / "configs" / "inference.json").read_text())
    for overlay in ("fast", "multi_gpu_train", "train_refiner", "cpu"):
        base = "inference" if overlay == "fast" else "train"
        config = json.loads((folder / "configs" / f"{base}.json").read_text())
        for name in json.loads((folder / "configs" / f"{overlay}.json").read_text()):
            entry = name.lstrip("+").split("#")[0]
            assert entry in config or entry in ("_desc_", "finalize"), (overlay, name)
    assert "report" not in inference
    assert "file_pattern" not in json.loads((folder / "configs" / "train.json").read_text())


@pytest.mark.parametrize("name", ["", "a/b", "ct mr", "1ct"])
def test_a_name_that_is_no_module_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected name to be letters"):
        export_to_zoo(tmp_path / "out", name=name)
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_a_segmentation_is_refused(tmp_path: Path) -> None:
    bundle = REPOSITORY / "bundles" / "contourdiff_vertebrae_mr"
    with pytest.raises(FileNotFoundError, match=r"files of a translator .*configs/fast\.json"):
        export_to_zoo(tmp_path / "out", bundle)
    assert not (tmp_path / "out").exists()


def test_a_name_without_zoo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.main(["export-bundle", str(tmp_path / "out"), "--name", NAME])
    assert exited.value.code
    assert not (tmp_path / "out").exists()
