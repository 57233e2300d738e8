# SPDX-License-Identifier: Apache-2.0
"""Labels on which networks agree: which MR are trained on, on what grid, and with which values."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from contourdiff.data.atomic import read_json
from contourdiff.data.training_cases import labelled_cases
from contourdiff.phantom import oblique_affine, write_phantom
from contourdiff.segmentation import self_training, transfer
from contourdiff.segmentation.model_bundle import write_model_bundle
from contourdiff.segmentation.results import mr_files, segment
from contourdiff.segmentation.self_training import (
    CONFIDENCE,
    Segmenter,
    agreed_label,
    write_agreed_labels,
)
from helpers.volumes import read_voxels, write_nifti

SHAPE = (4, 30, 20)
SPACING_MM = (4.0, 2.0, 2.2)
VALUE = 7  # of the class in the labels of the pairs
LABEL_MAP = {"classes": ["bone"], "ct": {"bone": [VALUE]}, "mr": {"bone": [VALUE]}}
CPU = torch.device("cpu")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [write_model_bundle(tmp_path / name, LABEL_MAP) for name in ("first", "second")]


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    """Ten MR, one of them not compressed, whose largest gray level is their number."""
    for number in range(10):
        ending = ".nii" if number == 3 else ".nii.gz"
        voxels = np.full(SHAPE, number, np.int16)
        write_nifti(
            tmp_path / "mr" / f"p{number}{ending}", voxels, oblique_affine(SHAPE, (2, 2, 3))
        )
    return mr_files(tmp_path / "mr")


class Painter:
    """Stands for a network: the class is in the first slices, the surer the higher the number of the MR."""

    calls = 0

    def __init__(self, model: Path, device: torch.device) -> None:
        self.slices = 1 if model.name == "first" else 3

    def __call__(self, image: Path) -> np.ndarray:
        type(self).calls += 1
        number = int(np.asarray(nib.load(image).dataobj).max())
        found = np.zeros(SHAPE, np.float32)
        found[: self.slices] = 0.42 + 0.02 * number if number else 0
        return np.stack([1 - found, found])


def test_the_mr_with_the_highest_confidence_are_trained_on(
    models: list[Path], images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two networks of three slices and one agree the class is, elsewhere the surer one is right."""
    monkeypatch.setattr(self_training, "Segmenter", Painter)
    Painter.calls = 0
    folder = write_agreed_labels(models, images, tmp_path / "agreed", device=CPU, progress=False)
    assert Painter.calls == 2 * len(images)
    confidences = read_json(folder / CONFIDENCE)
    assert confidences["p0"] == 0
    assert sorted(confidences, key=confidences.__getitem__) == [f"p{n}" for n in range(10)]
    cases = labelled_cases(folder)
    assert [Path(case["image"]).name.split(".")[0] for case in cases] == [
        f"p{number}" for number in range(3, 10)
    ]
    for case in cases:
        source = nib.load(case["image"])
        label = nib.load(case["label"])
        np.testing.assert_array_equal(label.affine, source.affine)
        values = np.asarray(label.dataobj)
        assert (values[0] == VALUE).all()
        assert (values[1:] == 0).all()  # a mean of at most 0.3

    write_agreed_labels(models, images, folder, device=CPU, progress=False)
    assert Painter.calls == 2 * len(images)
    more = {name: images[name] for name in ("p1", "p2", "p3")}
    write_agreed_labels(models, more, folder, device=CPU, progress=False)
    assert {path.name for path in folder.glob("p[1-3].nii*")} == {"p2.nii.gz", "p3.nii"}


def test_networks_that_find_nothing_are_refused(
    models: list[Path], images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_training, "Segmenter", Painter)
    nothing = {"p0": images["p0"]}
    with pytest.raises(ValueError, match="expected networks that find a class in the MR, got none"):
        write_agreed_labels(models, nothing, tmp_path / "agreed", device=CPU, progress=False)


def test_confidence_is_the_dice_of_the_probabilities_of_each_class() -> None:
    probabilities = np.array([[0.1, 0.2, 0.7], [0.9, 0.0, 0.2], [0.0, 0.8, 0.1]])
    label, confidence = agreed_label([probabilities])
    assert label.tolist() == [1, 2, 0]
    of_classes = (2 * 0.9 / (1.1 + 1), 2 * 0.8 / (0.9 + 1))
    assert confidence == pytest.approx(np.mean(of_classes))
    assert agreed_label([np.array([[1.0, 1.0], [0.0, 0.0]])])[1] == 0


def test_the_weight_of_the_background_is_taken_out() -> None:
    """Trained with a weight of 2, a network says 0.5 where it would have said 2/3 for the class."""
    weighted = np.array([[0.55, 0.7], [0.45, 0.3]])
    label, confidence = agreed_label([weighted], background_weight=2)
    assert label.tolist() == [1, 0]
    shares = (0.45 / (0.45 + 0.275), 0.3 / (0.3 + 0.35))
    assert confidence == pytest.approx(2 * shares[0] / (sum(shares) + 1))


@pytest.mark.slow
def test_several_networks_train_the_first_further(tmp_path: Path) -> None:
    """What a network says of an MR is what its bundle finds, and the same command again computes nothing."""
    ct = write_phantom(tmp_path / "ct", shape=(3, 80, 70), spacing_mm=(13.0, 2.0, 2.2)).parent
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        voxels = generator.integers(0, 400, (3, 60, 50)).astype(np.int16)
        write_nifti(tmp_path / "mr" / f"{name}.nii.gz", voxels, np.diag([5.0, 2.0, 2.0, 1.0]))
    out = tmp_path / "out"
    arguments = {
        "classes": {"bone": "27-31"},
        "networks": 2,
        "shapes": 1,
        "contrast": "t1",
        "steps": 8,
        "device": "cpu",
        "progress": False,
    }
    model = transfer(ct, tmp_path / "mr", out, **arguments)
    weights = {}
    for path in (model, *(out / "networks" / name for name in "01")):
        weights[path.name] = torch.load(path / "models" / "model.pt", weights_only=True)
    key = next(iter(weights["0"]))
    assert not torch.equal(weights["0"][key], weights["1"][key])
    assert not torch.equal(weights["0"][key], weights["model"][key])

    first = out / "networks" / "0"
    probabilities = Segmenter(first, CPU)
    for result in segment(first, tmp_path / "mr", tmp_path / "results"):
        image = tmp_path / "mr" / result.name.replace("_seg", "")
        found = probabilities(image)
        np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-2)
        assert np.mean(found.argmax(axis=0) == read_voxels(result)) > 0.97  # but for bfloat16

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    transfer(ct, tmp_path / "mr", out, **arguments)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")} == before
    with pytest.raises(
        ValueError, match=r"expected a transfer with networks 1 .* found one with 2"
    ):
        transfer(ct, tmp_path / "mr", out, **{**arguments, "networks": 1})
    transfer(ct, tmp_path / "mr", tmp_path / "one", **{**arguments, "networks": 1})
    with pytest.raises(
        ValueError, match=r"expected a transfer with networks 2 .* found one with 1"
    ):
        transfer(ct, tmp_path / "mr", tmp_path / "one", **arguments)
    assert not (tmp_path / "one" / "networks").exists()
