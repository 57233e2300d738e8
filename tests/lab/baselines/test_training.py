# SPDX-License-Identifier: Apache-2.0
"""A baseline trains on real slices with its own config, resumes exactly, and translates a real CT on its grid."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events

from contourdiff import cli
from contourdiff.weights import load_weights
from contourdiff_lab.baselines.cycle import CycleTrainer
from contourdiff_lab.baselines.generators import ResnetGenerator
from contourdiff_lab.baselines.training import (
    BASELINES,
    read_record,
    train_baseline,
    translate_with_baseline,
)
from helpers import CONFIGS, assert_same_grid, make_dataset, make_mr, voxels

TINY: dict[str, Any] = {
    "generator_channels": 4,
    "generator_blocks": 1,
    "discriminator_channels": 4,
    "image_size_px": [32, 32],
    "min_object_mm2": 100.0,
    "mr_min_object_mm2": 100.0,
    "pool_size": 3,
    "epoch_length": 2,
    "max_epochs": 4,
    "picture_interval": 10,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return make_dataset(folder / "ct", ("a", "b")), make_mr(folder / "mr")


@pytest.fixture(scope="module")
def trained(data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_baseline("cyclegan", *data, tmp_path_factory.mktemp("trained") / "whole", **TINY)


def test_a_training_leaves_what_a_translation_needs(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {
        "generator.pt",
        "checkpoint_epoch=4.pt",
        "translations_00004.png",
        "trained.json",
    } <= names
    load_weights(ResnetGenerator(channels=4, blocks=1), trained / "generator.pt")
    record = read_record(trained)
    assert (record["method"], record["iterations"], record["images"]) == ("cyclegan", 8, 8)
    assert record["settings"]["network_def"]["channels"] == 4
    networks = torch.load(trained / "checkpoint_epoch=4.pt", weights_only=True)["networks"]
    assert record["parameters"] == sum(value.numel() for value in networks.values())


def test_resume_equals_no_stop(
    trained: Path, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped for good after epoch 2 of 4, gone on with the same call: networks, optimizers and pools, to the bit."""
    run = CycleTrainer.run

    def stopped(self: CycleTrainer) -> None:
        self.add_event_handler(Events.EPOCH_COMPLETED(once=2), self.terminate)
        run(self)

    with monkeypatch.context() as patched:
        patched.setattr(CycleTrainer, "run", stopped)
        train_baseline("cyclegan", *data, tmp_path, **TINY)
    assert not (tmp_path / "trained.json").exists()
    for name, value in {"learning_rate": 1e-3, "max_epochs": 5}.items():
        with pytest.raises(ValueError, match=rf"got another \['{name}'\]; pass another output_dir"):
            train_baseline("cyclegan", *data, tmp_path, **{**TINY, name: value})
    with pytest.raises(ValueError, match=r"got another \['method'\]"):
        train_baseline("maskgan", *data, tmp_path, **TINY)
    torch.manual_seed(12345)
    np.random.seed(12345)
    train_baseline("cyclegan", *data, tmp_path, **TINY)
    expected, got = (
        torch.load(folder / "checkpoint_epoch=4.pt", weights_only=True)
        for folder in (trained, tmp_path)
    )
    for checkpoint in (expected, got):
        assert checkpoint.pop("budget")["seconds"] > 0
    assert len(got["ct_pool"]["images"]) == 3
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_finished_training_is_kept_and_another_is_refused(
    trained: Path, data: tuple[Path, Path]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in trained.iterdir()}
    assert train_baseline("cyclegan", *data, trained, **TINY) == trained
    assert {path.name: path.stat().st_mtime_ns for path in trained.iterdir()} == before
    with pytest.raises(ValueError, match=r"got another \['seed'\]; pass another output_dir"):
        train_baseline("cyclegan", *data, trained, **{**TINY, "seed": 3})


def test_wrong_input_is_refused_before_any_work(data: tuple[Path, Path], tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    with pytest.raises(ValueError, match="expected a method out of"):
        train_baseline("pix2pix", *data, output_dir)
    with pytest.raises(ValueError, match=r"got 'generator_block'; did you mean generator_blocks"):
        train_baseline("cyclegan", *data, output_dir, generator_block=3)
    with pytest.raises(FileNotFoundError, match="expected a folder of CT"):
        train_baseline("cyclegan", tmp_path / "none", data[1], output_dir, **TINY)
    with pytest.raises(FileNotFoundError, match="expected a folder of MR images"):
        train_baseline("cyclegan", data[0], tmp_path / "none", output_dir, **TINY)
    with pytest.raises(FileNotFoundError, match=r"found no trained\.json"):
        translate_with_baseline(tmp_path, data[0], output_dir)


def test_time_ends_a_training_that_is_then_finished(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    train_baseline("cyclegan", *data, tmp_path, **{**TINY, "minutes": 1e-6})
    assert read_record(tmp_path)["iterations"] == 1
    assert (tmp_path / "generator.pt").is_file()


def test_labels_are_read_where_they_are_asked_for(
    data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Classes of the label map, in the image's frame, resampled to the nearest."""
    seen: list[torch.Tensor] = []
    cycle_batch = CycleTrainer.cycle_batch

    def watched(self: CycleTrainer, batchdata: Any) -> Any:
        batch = cycle_batch(self, batchdata)
        seen.append(batch.ct_label)  # type: ignore[arg-type]
        assert batch.ct.shape == batch.ct_label.shape  # type: ignore[union-attr]
        return batch

    monkeypatch.setattr(CycleTrainer, "cycle_batch", watched)
    train_baseline("cyclegan", *data, tmp_path, **{**TINY, "ct_keys": ["image", "label"]})
    assert torch.cat(seen).unique().tolist() == [0, 1]


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_has_its_configs_and_says_what_it_needs(name: str) -> None:
    baseline = BASELINES[name]
    assert baseline.configs[0] == "cyclegan"
    assert all((CONFIGS / f"{config}.json").is_file() for config in baseline.configs)
    assert baseline.needs.startswith("CT")
    assert json.loads((CONFIGS / f"{baseline.configs[-1]}.json").read_text())["method"] == name


def test_the_command_trains_on_real_slices_and_translates_a_real_ct_on_its_grid(
    real_data: Path, tmp_path: Path
) -> None:
    ct, mr, out = tmp_path / "ct", tmp_path / "mr", tmp_path / "out"
    source, label = (
        nib.load(real_data / "ct" / "torso_ct.nii.gz"),
        nib.load(real_data / "ct" / "torso_vertebrae.nii.gz"),
    )
    for image, path in ((source, ct / "torso.nii.gz"), (label, ct / "labels" / "torso.nii.gz")):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image.slicer[54:62], path)
    mr.mkdir()
    for path in sorted((real_data / "mr_lumbar" / "t1").glob("*.nii.gz"))[:3]:
        shutil.copy(path, mr)
    small = (
        "epoch_length=2",
        "max_epochs=1",
        "generator_channels=4",
        "generator_blocks=1",
        "discriminator_channels=4",
    )
    cli.main(
        [
            "baseline",
            "cyclegan",
            str(ct),
            str(mr),
            str(out),
            "--pattern",
            "*",
            "--device",
            "cpu",
            "--settings",
            *small,
        ]
    )
    assert read_record(out)["iterations"] == 2
    translated = out / "translations"
    mr_image = nib.load(translated / "torso_mr.nii.gz")
    assert_same_grid(mr_image, nib.load(ct / "torso.nii.gz"))
    assert 0 <= np.min(mr_image.dataobj) < np.max(mr_image.dataobj) <= 255
    np.testing.assert_array_equal(
        voxels(translated / "torso_label.nii.gz"), voxels(ct / "labels" / "torso.nii.gz")
    )
    assert (translated / "torso_mr.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((translated / "torso_mr.json").read_text())
    assert (record["inferer"], record["weights"]["file"]) == ("GeneratorInferer", "generator.pt")
    assert record["fidelity"]["checked"] == 8
    assert record["settings"]["network_def"]["channels"] == 4
