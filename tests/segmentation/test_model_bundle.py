# SPDX-License-Identifier: Apache-2.0
"""The bundle of a segmentation network: what MONAI asks of it, and a training that can be interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export
from monai.transforms import Compose

from contourdiff.bundle import read_config, run_config
from contourdiff.data.label_map import LabelMap
from contourdiff.segmentation.model_bundle import (
    INFERENCE,
    METADATA,
    PRESETS,
    TRAIN,
    steps_in,
    train_model,
    write_model_bundle,
)
from helpers.segmentation import (
    AFFINE,
    CLASSES,
    SMALL,
    mr_with_bone,
    verify_with_monai,
    write_pairs,
    write_small_bundle,
)
from helpers.volumes import write_nifti

TWO = {
    "classes": ["disc space", "vertebra"],
    "ct": {"disc space": [3], "vertebra": ["27-50"]},
    "mr": {"disc space": [7], "vertebra": [1, 2]},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def trained(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_small_bundle(tmp_path_factory.mktemp("bundles") / "model")
    train_model(folder, pairs, steps=40, checkpoint_steps=20, **SMALL)
    return folder


def test_a_bundle_names_its_classes_wherever_they_are_read(tmp_path: Path) -> None:
    folder = write_model_bundle(tmp_path / "model", TWO, command="contourdiff transfer a b c")
    output = json.loads((folder / METADATA).read_text())["network_data_format"]["outputs"]["pred"]
    assert output["channel_def"] == {"0": "background", "1": "disc space", "2": "vertebra"}
    assert (
        output["num_channels"] == json.loads((folder / INFERENCE).read_text())["channels_out"] == 3
    )
    evaluate = json.loads((folder / "configs" / "evaluate.json").read_text())
    assert dict(zip(evaluate["label_values"], evaluate["label_classes"], strict=True)) == {
        7: 1,
        1: 2,
        2: 2,
    }
    colors = (folder / "labels.ctbl").read_text().splitlines()[1:]
    assert [line.split()[:2] for line in colors] == [["1", "disc_space"], ["2", "vertebra"]]
    card = (folder / "docs" / "README.md").read_text()
    assert "1 disc space, 2 vertebra" in card
    assert "contourdiff transfer a b c" in card
    assert "$" not in card
    assert LabelMap(folder / "label_map.json").classes == {1: "disc space", 2: "vertebra"}


@pytest.mark.parametrize("preset", PRESETS)
def test_metadata_and_network_of_a_preset_are_valid_for_monai(preset: str, tmp_path: Path) -> None:
    folder = write_model_bundle(tmp_path / "model", TWO, preset=preset)
    verify_with_monai(folder, tmp_path)


def test_slices_of_training_are_as_large_as_the_network_divides(tmp_path: Path) -> None:
    for preset in PRESETS:
        folder = write_model_bundle(tmp_path / preset, TWO, preset=preset)
        inference = json.loads((folder / INFERENCE).read_text())
        train = json.loads((folder / TRAIN).read_text())
        divisor = np.prod(inference["network_def"]["strides"])
        assert inference["size_divisor"] == divisor
        assert not any(size % divisor for size in train["image_size_px"])
        field_mm = [size * inference["spacing_mm"] for size in train["image_size_px"]]
        assert field_mm == [288, 288]


def test_a_pixel_of_background_counts_twice(tmp_path: Path) -> None:
    folder = write_model_bundle(tmp_path / "model", TWO)
    parser = ConfigParser()
    parser.read_config([str(folder / INFERENCE), str(folder / TRAIN)])
    parser["device"] = torch.device("cpu")
    loss = parser.get_parsed_content("loss")
    label = torch.randint(0, 3, (4, 1, 16, 16))
    output = torch.randn(4, 3, 16, 16)
    expected = torch.nn.functional.cross_entropy(
        output, label[:, 0], weight=torch.tensor([2.0, 1.0, 1.0])
    )
    torch.testing.assert_close(loss(output, label.float()), expected)


def test_bone_alone_gets_other_surroundings_in_training(pairs: Path, tmp_path: Path) -> None:
    """Two trainings from one seed differ by nothing else: with bone, more pixels of a slice change."""
    images = {}
    for name, bone in (("none", []), ("bone", [1])):
        folder = write_small_bundle(tmp_path / name, bone=bone)
        assert json.loads((folder / TRAIN).read_text())["bone_classes"] == bone
        parser = read_config(
            [str(folder / INFERENCE), str(folder / TRAIN)],
            {
                "dataset_dir": pairs,
                "steps": 2,
                "bone_surroundings_probability": 1.0,
                "cross_domain_share": 0.0,
                "intensity_probability": 0.0,
                **SMALL,
            },
        )
        dataset = parser.get_parsed_content("train#dataset")
        transforms = dataset.transform.transforms[:-1]  # without the gray levels
        dataset.transform = Compose(transforms)
        dataset.set_random_state(0)
        item = dataset[len(dataset) // 2]
        images[name] = np.asarray(item["image"])
        assert np.asarray(item["label"]).any()
    assert np.mean(images["none"] != images["bone"]) > 0.1


def test_the_ct_of_pairs_is_turned_and_scaled_as_they_are(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs")
    for path in sorted(pairs.glob("*_label.nii.gz")):
        label = np.asarray(nib.load(path).dataobj)
        hounsfield = np.where(label > 0, 250, -100).astype(np.int16)
        write_nifti(pairs / "ct" / path.name.replace("_label", ""), hounsfield, AFFINE)
    folder = write_small_bundle(tmp_path / "model", bone=[1])
    settings = {"dataset_dir": pairs, "steps": 2, "spacing_mm": 1.0, **SMALL}
    parser = read_config([str(folder / INFERENCE), str(folder / TRAIN)], settings)
    dataset = parser.get_parsed_content("train#dataset")
    assert dataset[0].keys() == {"image", "label"}  # a batch may mix pairs with a CT and without
    steps = parser.get_parsed_content("augmentation").transforms
    dataset.transform = Compose(steps[:-1])
    dataset.set_random_state(1)
    for position in range(0, len(dataset), 3):
        item = dataset[position]
        bone = np.asarray(item["label"]) > 0
        hounsfield = np.asarray(item["ct"])
        assert hounsfield[bone].mean() > 150
        assert hounsfield[~bone].mean() < 0
    assert bone.any()


def test_another_preset_and_a_folder_with_content_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="preset must be one of"):
        write_model_bundle(tmp_path / "model", TWO, preset="tpu")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="a new or an empty folder"):
        write_model_bundle(tmp_path, TWO)


@pytest.mark.slow
def test_a_training_that_was_interrupted_ends_with_the_same_bytes(
    pairs: Path, trained: Path, tmp_path: Path
) -> None:
    folder = write_small_bundle(tmp_path / "model")
    settings = {"steps": 40, "checkpoint_steps": 20, **SMALL}
    configs = [str(folder / INFERENCE), str(folder / TRAIN)]
    run_config("train", configs, {"dataset_dir": pairs, "max_epochs": 1, **settings})
    half = torch.load(folder / "models" / "model.pt", weights_only=True)
    train_model(folder, pairs, **settings)
    whole = torch.load(trained / "models" / "model.pt", weights_only=True)
    resumed = torch.load(folder / "models" / "model.pt", weights_only=True)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    assert any(not torch.equal(value, half[name]) for name, value in whole.items())


@pytest.mark.slow
def test_a_finished_training_is_kept(pairs: Path, trained: Path) -> None:
    weights = trained / "models" / "model.pt"
    before = weights.stat().st_mtime_ns
    assert train_model(trained, pairs, steps=40, **SMALL) == weights
    assert weights.stat().st_mtime_ns == before
    assert not list(weights.parent.glob("checkpoint*"))


@pytest.mark.slow
def test_monai_alone_segments_a_folder_and_scores_it(trained: Path, tmp_path: Path) -> None:
    """In a process that cannot import this package."""
    mr = tmp_path / "mr"
    for number in range(2):
        gray, mask = mr_with_bone(20 + number)
        write_nifti(mr / f"t{number}.nii.gz", 7 * gray + 100, AFFINE)
        label = np.where(mask, 2, 9).astype(np.uint8)  # a value of no class is background
        write_nifti(mr / "labels" / f"t{number}.nii.gz", label, AFFINE)
    words = ["run", "--config_file", "['configs/inference.json', 'configs/evaluate.json']"]
    words += ["--dataset_dir", str(mr), "--output_dir", str(tmp_path / "out")]
    hide = "import sys; sys.modules['contourdiff'] = None"
    code = f"{hide}; import fire, monai.bundle; fire.Fire(monai.bundle)"
    subprocess.run([sys.executable, "-c", code, *words], cwd=trained, check=True, timeout=300)
    dice = []
    for number in range(2):
        result = nib.load(tmp_path / "out" / f"t{number}_seg.nii.gz")
        found = np.asarray(result.dataobj) == 1
        _, mask = mr_with_bone(20 + number)
        np.testing.assert_allclose(result.affine, AFFINE, atol=1e-4)
        dice.append(2 * (found & mask).sum() / (found.sum() + mask.sum()))
    written = (tmp_path / "out" / "metrics.csv").read_text()
    reported = float(written.splitlines()[0].split(",")[1])
    assert reported == pytest.approx(np.mean(dice), abs=1e-4)
    assert reported > 0.6  # a bright block on gray is learnt at once


@pytest.mark.slow
def test_torchscript_of_the_network_computes_the_same(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.ts"
    files = {
        "ckpt_file": str(trained / "models" / "model.pt"),
        "meta_file": str(trained / METADATA),
        "config_file": str(trained / INFERENCE),
    }
    ckpt_export("network_def", str(path), **files)
    parser = ConfigParser()
    parser.read_config(str(trained / INFERENCE))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(trained / "models" / "model.pt", weights_only=True))
    image = torch.rand(2, 1, 48, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(path)(image), network(image))


@pytest.mark.slow
def test_the_steps_that_fit_into_a_time_are_counted_and_at_least_one(
    pairs: Path, trained: Path
) -> None:
    hour = steps_in(3600, trained, pairs, "cpu")
    assert hour > 1000  # of a small network
    assert steps_in(0.0, trained, pairs, "cpu") == 1


def test_an_unknown_setting_of_a_training_is_refused(pairs: Path, tmp_path: Path) -> None:
    folder = write_small_bundle(tmp_path / "model", CLASSES)
    with pytest.raises(ValueError, match="did you mean steps"):
        train_model(folder, pairs, step=3)
