# SPDX-License-Identifier: Apache-2.0
"""Every baseline trains with its config, resumes exactly, and translates on the grid of the CT."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch

from contourdiff.bundle import find_bundle
from contourdiff.training.handlers import EpochSeeder
from contourdiff.weights import load_weights
from contourdiff_lab.baselines.generators import ResnetGenerator
from contourdiff_lab.baselines.training import (
    BASELINES,
    read_record,
    train_baseline,
    translate_with_baseline,
)
from contourdiff_lab.commands import main
from contourdiff_lab.config_files import lab_config, read_lab_config
from helpers.paths import CONFIGS, LABEL_MAP
from helpers.volumes import assert_same_grid, read_voxels, write_nifti

Settings = Callable[[str], dict[str, Any]]
Train = Callable[..., Path]
Trained = Callable[[str], Path]


class StoppedError(OSError):
    """The training was interrupted."""


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return state


def assert_same_weights(first: Path, second: Path) -> None:
    torch.testing.assert_close(weights(first), weights(second), rtol=0, atol=0)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_has_its_configs_and_says_what_it_needs(name: str) -> None:
    baseline = BASELINES[name]
    parser = read_lab_config(baseline.configs, {})
    assert parser["method"] == name
    assert parser["bundle_root"] == str(find_bundle().resolve())
    assert Path(parser.get_parsed_content("label_map")) == Path(LABEL_MAP)
    expressions = re.findall(r'": "\$|[\[,] "\$', json.dumps(parser.get()))
    assert len(expressions) <= 12
    assert baseline.needs.startswith("CT")


def test_a_training_leaves_what_a_translation_needs(trained: Trained) -> None:
    folder = trained("cyclegan")
    names = {path.name for path in folder.iterdir()}
    assert "translations_00002.png" in names
    load_weights(ResnetGenerator(channels=4, blocks=1), folder / "generator.pt")
    record = read_record(folder)
    assert (record["method"], record["iterations"], record["images"]) == ("cyclegan", 2, 4)
    assert record["settings"]["network_def"]["channels"] == 4
    networks = torch.load(folder / "checkpoint_epoch=2.pt", weights_only=True)["networks"]
    assert record["parameters"] == sum(value.numel() for value in networks.values())


def test_the_record_of_maskgan_has_the_settings_of_the_masks(trained: Trained) -> None:
    settings = read_record(trained("maskgan"))["settings"]
    assert (settings["mask_weight"], settings["shape_weight"]) == (1.0, 0.5)
    assert (settings["ct_mask_threshold"], settings["mr_mask_threshold"]) == (10, 5)
    assert settings["mask_hole_px"] == 20
    assert settings["attentions"] == settings["network_def"]["attentions"] == 5
    assert "terms" not in settings


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["cyclegan", "maskgan", "synseg", pytest.param("cycada", marks=pytest.mark.slow)]
)
def test_a_training_that_is_stopped_in_every_stage_ends_as_one_that_is_not(
    method: str, train: Train, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the second of two epochs, and gone on with the same call: to the bit."""
    seed = EpochSeeder.__call__
    epochs = []
    stages = 3 if method == "cycada" else 1
    stops = [3 * stage + 2 for stage in range(stages)]

    def stop_at_second(self: EpochSeeder, engine: Any) -> None:
        epochs.append(engine.state.epoch)
        if len(epochs) in stops:
            raise StoppedError
        seed(self, engine)

    whole = trained(method)
    monkeypatch.setattr(EpochSeeder, "__call__", stop_at_second)
    for _ in stops:
        with pytest.raises(StoppedError):
            train(method, tmp_path)
        assert not (tmp_path / "trained.json").exists()
    torch.manual_seed(12345)
    np.random.seed(12345)
    train(method, tmp_path)
    assert epochs == [1, 2, 2] * stages
    assert_same_weights(tmp_path / "generator.pt", whole / "generator.pt")
    if BASELINES[method].segments:
        assert_same_weights(tmp_path / "segmentation.pt", whole / "segmentation.pt")
    assert read_record(tmp_path)["iterations"] == read_record(whole)["iterations"] == 2 * stages
    resumed = torch.load(tmp_path / "checkpoint_epoch=2.pt", weights_only=True)
    expected = torch.load(whole / "checkpoint_epoch=2.pt", weights_only=True)
    for checkpoint in (resumed, expected):
        assert checkpoint.pop("budget")["seconds"] > 0
    assert len(resumed["ct_pool"]["images"]) == 3
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)


def test_an_unfinished_training_goes_on_with_the_same_settings_alone(
    train: Train, trained: Trained, tmp_path: Path
) -> None:
    for name in ("started.json", "checkpoint_epoch=2.pt"):
        shutil.copy(trained("cyclegan") / name, tmp_path)
    for name, value in {"learning_rate": 1e-3, "max_epochs": 5}.items():
        with pytest.raises(ValueError, match=rf"got another \['{name}'\]; pass another output_dir"):
            train("cyclegan", tmp_path, **{name: value})
    with pytest.raises(ValueError, match=r"got another \['method'\]"):
        train("maskgan", tmp_path)


def test_a_finished_training_is_kept_and_another_is_refused(train: Train, trained: Trained) -> None:
    folder = trained("cyclegan")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert train("cyclegan", folder) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(ValueError, match=r"got another \['seed'\]; pass another output_dir"):
        train("cyclegan", folder, seed=3)


def test_wrong_input_of_a_baseline_is_refused_before_any_work(
    domains: tuple[Path, Path], settings: Settings, tmp_path: Path
) -> None:
    ct, mr = domains
    output_dir = tmp_path / "out"
    with pytest.raises(ValueError, match="expected a method out of"):
        train_baseline("pix2pix", ct, mr, output_dir)
    with pytest.raises(ValueError, match=r"got 'generator_block'; did you mean generator_blocks"):
        train_baseline("cyclegan", ct, mr, output_dir, generator_block=3)
    tiny = settings("cyclegan")
    with pytest.raises(FileNotFoundError, match="expected a folder of CT"):
        train_baseline("cyclegan", tmp_path / "none", mr, output_dir, **tiny)
    with pytest.raises(FileNotFoundError, match="expected a folder of MR images"):
        train_baseline("cyclegan", ct, tmp_path / "none", output_dir, **tiny)
    with pytest.raises(FileNotFoundError, match=r"found no trained\.json"):
        translate_with_baseline(tmp_path, ct, output_dir)


def test_time_ends_a_training_that_is_then_finished(train: Train, tmp_path: Path) -> None:
    train("cyclegan", tmp_path, minutes=1e-6)
    assert read_record(tmp_path)["iterations"] == 1
    assert (tmp_path / "generator.pt").is_file()


def test_the_bundle_command_trains_as_the_function_does(
    domains: tuple[Path, Path], settings: Settings, trained: Trained, tmp_path: Path
) -> None:
    arguments = {"config_file": lab_config("cyclegan"), "run_id": "run", "logging_file": False}
    paths = {"ct_dir": str(domains[0]), "mr_dir": str(domains[1]), "output_dir": str(tmp_path)}
    tiny = {**settings("cyclegan"), "device": "$torch.device('cpu')"}
    with pytest.raises(SystemExit, match="got 'pool_sizes'; did you mean pool_size"):
        monai.bundle.run(**arguments, **paths, **tiny, pool_sizes=3)
    monai.bundle.run(**arguments, **paths, **tiny)
    assert_same_weights(tmp_path / "generator.pt", trained("cyclegan") / "generator.pt")


def test_slices_of_a_method_that_segments_have_classes_of_the_label_map(
    domains: tuple[Path, Path], settings: Settings, tmp_path: Path
) -> None:
    """Resampled to the nearest, in the frame of the image."""
    paths = {"ct_dir": str(domains[0]), "mr_dir": str(domains[1]), "output_dir": str(tmp_path)}
    parser = read_lab_config(BASELINES["synseg"].configs, {**settings("synseg"), **paths})
    dataset = parser.get_parsed_content("train#dataset")
    items = [dataset[number] for number in range(len(dataset))]
    assert all(item["ct"].shape == item["ct_label"].shape for item in items)
    assert torch.stack([item["ct_label"] for item in items]).unique().tolist() == [0, 1]


def test_a_generator_with_attention_translates_on_the_grid_of_the_ct(
    domains: tuple[Path, Path], trained: Trained, tmp_path: Path
) -> None:
    translate_with_baseline(trained("maskgan"), domains[0], tmp_path, progress=False)
    assert_same_grid(nib.load(tmp_path / "a_mr.nii.gz"), nib.load(domains[0] / "a.nii.gz"))
    assert np.ptp(read_voxels(tmp_path / "a_mr.nii.gz")) > 1
    record = json.loads((tmp_path / "a_mr.json").read_text())
    assert record["settings"]["network_def"]["attentions"] == 5


def test_a_training_of_the_former_package_still_translates(
    domains: tuple[Path, Path], trained: Trained, tmp_path: Path
) -> None:
    shutil.copy(trained("cyclegan") / "generator.pt", tmp_path)
    record = (trained("cyclegan") / "trained.json").read_text()
    former = record.replace("contourdiff_lab.baselines", "contourdiff.rivals")
    (tmp_path / "trained.json").write_text(former)
    translate_with_baseline(tmp_path, domains[0], tmp_path / "mr", progress=False)
    assert (tmp_path / "mr" / "a_mr.json").is_file()


def write_real_ct(real_data: Path, folder: Path, slices: slice) -> Path:
    """Some sagittal slices of the torso, with their label."""
    for source, target in (
        ("torso_ct", "torso.nii.gz"),
        ("torso_vertebrae", "labels/torso.nii.gz"),
    ):
        image = nib.load(real_data / "ct" / f"{source}.nii.gz").slicer[slices]
        write_nifti(folder / target, image.get_fdata().astype("int16"), image.affine)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["maskgan", "synseg", "cycada"])
def test_a_baseline_trains_on_real_slices(
    method: str, settings: Settings, real_data: Path, tmp_path: Path
) -> None:
    """A segmentation network that it trains is scored on real MR."""
    changes = {
        "image_size_px": [64, 64],
        "datalist": "index.csv",
        "file_pattern": "t1/spider_00[1-3]_*",
        "min_object_mm2": 9600.0,
        "max_hole_mm2": 3600.0,
    }
    ct = write_real_ct(real_data, tmp_path / "ct", slice(58, 61))
    folder = train_baseline(
        method, ct, real_data / "mr_lumbar", tmp_path / "out", **{**settings(method), **changes}
    )
    assert read_record(folder)["method"] == method
    if not BASELINES[method].segments:
        return
    images = sorted((real_data / "mr_lumbar_labelled" / "images").glob("*.nii.gz"))
    configs = [str(CONFIGS / f"{name}.json") for name in ("segmentation_train", "evaluate")]
    monai.bundle.run(
        config_file=configs,
        test_dir=str(real_data / "mr_lumbar_labelled"),
        test_pattern=images[0].name.removesuffix(".nii.gz"),
        ckpt_path=str(folder / "segmentation.pt"),
        output_dir=str(tmp_path / "scores"),
        label_map=LABEL_MAP,
    )
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert 0 <= scores["summary"][0]["dice"] <= 1


@pytest.mark.slow
def test_the_command_trains_on_real_slices_and_translates_a_real_ct_on_its_grid(
    real_data: Path, tmp_path: Path
) -> None:
    ct = write_real_ct(real_data, tmp_path / "ct", slice(54, 62))
    mr = tmp_path / "mr"
    mr.mkdir()
    for path in sorted((real_data / "mr_lumbar" / "t1").glob("*.nii.gz"))[:3]:
        shutil.copy(path, mr)
    out = tmp_path / "out"
    small = [
        "epoch_length=2",
        "max_epochs=1",
        "generator_channels=4",
        "generator_blocks=1",
        "discriminator_channels=4",
    ]
    options = ["--pattern", "*", "--device", "cpu", "--settings", *small]
    main(["baseline", "cyclegan", str(ct), str(mr), str(out), *options])
    assert read_record(out)["iterations"] == 2
    translated = out / "translations"
    mr_image = nib.load(translated / "torso_mr.nii.gz")
    assert_same_grid(mr_image, nib.load(ct / "torso.nii.gz"))
    assert 0 <= np.min(mr_image.dataobj) < np.max(mr_image.dataobj) <= 255
    label = read_voxels(translated / "torso_label.nii.gz")
    np.testing.assert_array_equal(label, read_voxels(ct / "labels" / "torso.nii.gz"))
    assert (translated / "torso_mr.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((translated / "torso_mr.json").read_text())
    assert record["weights"]["file"] == "generator.pt"
    assert record["fidelity"]["checked"] == 8
    assert record["settings"]["network_def"]["channels"] == 4
