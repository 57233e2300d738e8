# SPDX-License-Identifier: Apache-2.0
"""The stand-alone bundle works where the package is not installed, and passes the model zoo's checks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contourdiff import cli
from contourdiff.bundle import run_inference_config
from contourdiff.deploy.bundle_export import export_bundle
from contourdiff.phantom import write_phantom
from helpers.paths import CONFIGS, REPOSITORY
from helpers.runs import BUNDLE_COMMANDS
from helpers.volumes import read_voxels

Elsewhere = Callable[..., str]

NAME = "contourdiff_ct2mr"
QUICK = {
    "num_inference_steps": 2,
    "num_refinement_steps": 1,
    "candidates": 1,
    "max_rounds": 1,
    "contrast": "t2",
}
WITHOUT_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "contourdiff":
            raise ModuleNotFoundError("contourdiff is not installed")

sys.meta_path.insert(0, Absent())
"""

LOAD = """
import sys
import torch
from monai.bundle import load

sys.path.insert(1, "contourdiff_ct2mr")
network = load("contourdiff_ct2mr", bundle_dir=".", source="github", workflow_type="inference", device="cpu")
assert type(network).__module__ == "scripts.networks"
state = torch.load("contourdiff_ct2mr/models/model.pt", weights_only=True)
assert all(torch.equal(network.state_dict()[key], value.float()) for key, value in state.items())

from scripts.bundle import find_bundle
assert find_bundle().samefile("contourdiff_ct2mr")
"""

ZOO_CHECKS = """
import sys
from pathlib import Path
from monai.bundle import create_workflow, verify_metadata, verify_net_in_out

root, data, schema = sys.argv[1:]
sys.path.insert(0, root)  # as ci/verify_bundle.py of the model zoo
common = {"logging_file": f"{root}/configs/logging.conf", "meta_file": f"{root}/configs/metadata.json"}
settings = {"inference": {}, "train": {"dataset_dir": data, "datalist": "list.csv"}}
for kind, given in settings.items():
    workflow = create_workflow(
        config_file=f"{root}/configs/{kind}.json", workflow_type=kind, bundle_root=root, **common, **given
    )
    assert workflow.check_properties() == [], kind
verify = {"config_file": f"{root}/configs/inference.json", "meta_file": common["meta_file"]}
verify |= {"bundle_root": root, "n": 4}
verify_net_in_out("network_def", **verify)
verify_net_in_out("coarse_network", **verify)
verify_net_in_out("refiner", **verify, **{"_meta_#network_data_format#inputs#image#num_channels": 3})
if Path(schema).is_file():
    verify_metadata(meta_file=common["meta_file"], filepath=schema)
"""

TARGETS = """
import importlib, pathlib, re, sys
from pydoc import locate
root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root))
names = {name for path in root.rglob("*.json") for name in re.findall(r'"(scripts[.][.\\w]+)"', path.read_text())}
missing = sorted(name for name in names if locate(name) is None)
assert len(names) > 30 and not missing, missing
for path in (root / "scripts").rglob("*.py"):
    importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"))
"""

REASONS = {
    ("train", "multi_gpu_train"): "expected one process for each GPU, started by torchrun",
    ("segmentation_train", "multi_gpu_train"): "expected one process for each GPU, started",
    ("segmentation_train", "evaluate"): "component 'scripts.data.training_cases.labelled_cases",
    ("train",): "component 'scripts.data.training_cases.training_cases",
    ("inference", "fast"): "expected a folder",
}
"""Error of configs without data."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(tmp_path_factory.mktemp("zoo") / NAME)


@pytest.fixture
def elsewhere(exported: Path, tmp_path: Path) -> Elsewhere:
    """Run Python in the folder above the exported bundle, or another, as if the package were not installed."""

    def call(*arguments: object, cwd: Path = exported.parent) -> str:
        (tmp_path / "path").mkdir(exist_ok=True)
        (tmp_path / "path" / "sitecustomize.py").write_text(WITHOUT_PACKAGE)
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "path")}
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
        )
        return "" if done.returncode == 0 else done.stderr[-3000:]

    return call


def test_the_package_is_absent_elsewhere(elsewhere: Elsewhere) -> None:
    assert "contourdiff is not installed" in elsewhere("-c", "import contourdiff")


@pytest.mark.slow
def test_an_exported_bundle_gives_the_same_mr_from_another_directory(
    exported: Path, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    write_phantom(tmp_path / "ct", shape=(5, 112, 128), spacing_mm=(38.0, 2.2, 2.2))
    here = run_inference_config(
        tmp_path / "ct", tmp_path / "here", **QUICK, device="$torch.device('cpu')"
    )
    root = os.path.relpath(exported, tmp_path)
    command = [
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        f"{root}/configs/inference.json",
        "--bundle_root",
        root,
    ]
    settings = {
        "dataset_dir": "ct",
        "output_dir": "there",
        "report": True,
        "device": "$torch.device('cpu')",
        **QUICK,
    }
    command += [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    assert elsewhere(*command, cwd=tmp_path) == ""
    mr = read_voxels(tmp_path / "there" / "phantom_mr.nii.gz")
    assert mr.std() > 10
    np.testing.assert_array_equal(mr, read_voxels(here / "phantom_mr.nii.gz"))
    assert "phantom" in (tmp_path / "there" / "index.html").read_text()
    records = [
        json.loads((tmp_path / folder / "phantom_mr.json").read_text())
        for folder in ("here", "there")
    ]
    assert records[0]["weights"] == records[1]["weights"]


@pytest.mark.slow
def test_monai_loads_network_and_weights(elsewhere: Elsewhere) -> None:
    assert elsewhere("-c", LOAD) == ""


@pytest.mark.slow
def test_an_exported_bundle_has_all_that_its_configs_refer_to(
    exported: Path, elsewhere: Elsewhere
) -> None:
    assert elsewhere("-c", TARGETS, exported) == ""
    modules = {path.stem for path in (exported / "scripts").rglob("*.py")}
    assert {"networks", "inferer", "onnx_network", "slice_dataset"} <= modules
    assert not any(
        "contourdiff_lab" in path.read_text() for path in (exported / "scripts").rglob("*.py")
    )
    assert not {"cli", "experiment", "bundle_export"} & modules


@pytest.mark.slow
def test_an_exported_bundle_passes_the_checks_of_the_model_zoo(
    exported: Path, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    for case in "ab":
        write_phantom(tmp_path / "mr", case, shape=(2, 60, 60), spacing_mm=(90.0, 4.0, 4.0))
    (tmp_path / "mr" / "list.csv").write_text("file,split\na.nii.gz,train\nb.nii.gz,val\n")
    schema = tmp_path / "schema.json"
    if (source := REPOSITORY.parent / "shared" / "schemas" / "meta_schema_20240725.json").is_file():
        schema.write_bytes(source.read_bytes())
    assert elsewhere("-c", ZOO_CHECKS, exported, tmp_path / "mr", schema) == ""


def test_exported_files_are_as_the_model_zoo_wants_them(exported: Path) -> None:
    for path in exported.rglob("*.json"):
        assert path.read_text() == json.dumps(json.loads(path.read_text()), indent=4) + "\n", (
            path.name
        )
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt", "configs/logging.conf"):
        assert (exported / name).is_file()
    metadata = json.loads((exported / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    required = metadata["required_packages_version"]
    pins = dict(
        line.split("==")
        for line in (REPOSITORY / "constraints.txt").read_text().split()
        if "==" in line
    )
    assert "contourdiff" not in required
    assert required == {name: pins[name] for name in required}
    assert all(path.stat().st_size <= 25e6 for path in exported.rglob("*"))
    assert all(path.stat().st_size < 1e6 for path in (exported / "docs").rglob("*"))


@pytest.mark.parametrize("place", ["repository", "site-packages"])
def test_no_picture_and_no_link_of_an_exported_card_is_dead(
    place: str, exported: Path, tmp_path: Path
) -> None:
    if place == "site-packages":  # without the pages around the bundle
        bundle = shutil.copytree(CONFIGS.parent, tmp_path / "package" / "bundles" / NAME)
        exported = export_bundle(tmp_path / NAME, bundle)
    card = exported / "docs" / "README.md"
    targets = re.findall(r"\]\(([^)]*)\)", card.read_text())
    assert len(targets) > 4
    for target in targets:
        assert target.startswith("https://") or (card.parent / target).is_file(), target


@pytest.mark.slow
def test_configs_with_any_overlay_find_the_code_from_any_directory(
    exported: Path, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    """Their own errors show that the code of the bundle ran."""
    folder = str(tmp_path / "none")
    data = ["--dataset_dir", folder, "--output_dir", str(tmp_path / "out")]
    commands = []
    for configs in REASONS:
        files = [str(exported / "configs" / f"{name}.json") for name in configs]
        commands.append(["run", "--config_file", str(files), *data])
        if "evaluate" in configs:
            commands[-1] += ["--test_dir", folder, "--ckpt_path", folder]
    assert elsewhere("-c", BUNDLE_COMMANDS, json.dumps(commands), cwd=tmp_path) == ""
    for number, (configs, reason) in enumerate(REASONS.items()):
        assert reason in (tmp_path / f"{number}.log").read_text(), configs


def test_no_exported_config_looks_at_the_callers_frames(exported: Path) -> None:
    for path in exported.rglob("*.json"):
        assert "inspect" not in path.read_text()
        assert "sys.path" not in path.read_text()


@pytest.mark.slow
def test_an_editable_installation_is_exported(tmp_path: Path) -> None:
    """Its folder ``contourdiff.egg-info`` beside the package has the package's name."""
    source = tmp_path / "plugin"
    shutil.copytree(REPOSITORY / "plugin" / "contourdiff", source / "contourdiff")
    (source / "contourdiff.egg-info").mkdir()
    call = "import sys; from contourdiff.deploy.bundle_export import export_bundle as e; e(*sys.argv[1:])"
    subprocess.run(
        [sys.executable, "-c", call, tmp_path / NAME, CONFIGS.parent],
        env={**os.environ, "PYTHONPATH": str(source)},
        check=True,
    )
    assert (tmp_path / NAME / "scripts" / "networks.py").is_file()


def test_a_folder_with_content_and_one_in_the_bundle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(
        SystemExit,
        match=r"error: expected a new or an empty folder to write to at .*, got one with",
    ):
        cli.main(["export-bundle", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="expected a folder outside the bundle"):
        export_bundle(CONFIGS.parent / "copy")
    assert not (CONFIGS.parent / "copy").exists()


def test_an_export_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("contourdiff.deploy.bundle_export._rewrite_card", full)
    with pytest.raises(OSError, match="no space left"):
        export_bundle(tmp_path / NAME)
    assert list(tmp_path.iterdir()) == []


def test_a_version_without_a_changelog_is_refused(exported: Path, tmp_path: Path) -> None:
    other = export_bundle(tmp_path / "other", exported)
    metadata = json.loads((other / "configs" / "metadata.json").read_text()) | {"version": "9.9.9"}
    (other / "configs" / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"expected version 9.9.9 in the changelog"):
        export_bundle(tmp_path / "new", other)
    assert not (tmp_path / "new").exists()
