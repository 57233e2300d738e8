# SPDX-License-Identifier: Apache-2.0
"""A folder of training pairs: what is in it, who reads it, and what is refused before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import load_decathlon_datalist

import contourdiff
from contourdiff.cli import main
from contourdiff.contours import contour_of, outline_of
from contourdiff.data.label_map import LabelMap
from contourdiff.inference.summary import FailedCasesError
from contourdiff.metrics.contour_fidelity import near
from contourdiff.networks import ContourUNet
from contourdiff.pairs import make_pairs
from contourdiff.pairs.folder import labelled_pairs
from helpers.networks import TINY_ARGUMENTS, TINY_NETWORK
from helpers.paths import CONFIGS, LABEL_MAP
from helpers.runs import QUICK_SETTINGS
from helpers.volumes import ball_ct, oblique_affine, read_voxels, write_nifti

AFFINE = oblique_affine((3.0, 2.5, 2.0))
SHAPES = 4


def make_ct(folder: Path, names: str = "ab") -> Path:
    for number, name in enumerate(names):
        ct = ball_ct((8, 34, 36), seed=number)
        write_nifti(folder / f"{name}.nii.gz", ct, AFFINE)
        label = np.where(ct > 200, 27 + number, 0).astype(np.uint8)
        write_nifti(folder / "labels" / f"{name}.nii.gz", label, AFFINE)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_weights: Path) -> dict[str, Any]:
    """Settings of a small untrained network of 2.2 mm."""
    return {
        "overlays": ("single",),
        "network_def": TINY_NETWORK,
        "weights": tiny_weights,
        "min_object_mm2": 100.0,
        "device": "cpu",
        "progress": False,
        "filter_classes": QUICK_SETTINGS["filter_classes"],
        "acceleration": QUICK_SETTINGS["acceleration"],
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Any]) -> Path:
    """Pairs of two CT; ``ct`` is beside them."""
    root = tmp_path_factory.mktemp("pairs")
    ct = make_ct(root / "ct")
    assert contourdiff.make_pairs(ct, root / "pairs", shapes=SHAPES, **tiny) == root / "pairs"
    return root / "pairs"


def voxels_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_voxels(path) for path in sorted(folder.glob("*.nii.gz"))}


def test_a_folder_of_pairs_holds_mr_and_label_of_each_shape_on_one_grid(made: Path) -> None:
    kinds = ("mr.nii.gz", "label.nii.gz", "mr.json")
    expected = {f"{case}_s{n}_{kind}" for case in "ab" for n in range(SHAPES) for kind in kinds}
    expected |= {"pairs.json", "datalist.json", "pairs.png", "run.json", "ct"}
    assert {path.name for path in made.iterdir()} == expected
    for case, value in (("a", 27), ("b", 28)):
        for number in range(SHAPES):
            mr = nib.load(made / f"{case}_s{number}_mr.nii.gz")
            label = nib.load(made / f"{case}_s{number}_label.nii.gz")
            np.testing.assert_array_equal(mr.affine, label.affine)
            np.testing.assert_allclose(mr.header.get_zooms(), (3, 2.2, 2.2), atol=1e-5)
            assert mr.get_data_dtype() == np.uint8
            assert set(np.unique(np.asarray(label.dataobj))) == {0, value}
            assert np.asarray(mr.dataobj).std() > 1
    records = [json.loads(path.read_text()) for path in made.glob("a_s*_mr.json")]
    assert sum(record["settings"]["outline"] for record in records) == SHAPES / 2
    assert all(record["settings"]["num_inference_steps"] == 1 for record in records)
    assert (made / "pairs.png").read_bytes().startswith(b"\x89PNG")


def test_the_ct_of_each_shape_is_kept_for_its_training(made: Path, tmp_path: Path) -> None:
    shapes = {f"{case}_s{number}" for case in "ab" for number in range(SHAPES)}
    assert {path.name for path in (made / "ct").iterdir()} == {f"{name}.nii.gz" for name in shapes}
    for item in labelled_pairs(made):
        ct, mr, label = (nib.load(item[key]) for key in ("ct", "image", "label"))
        assert Path(item["image"]).name == Path(item["ct"]).name.replace(".nii", "_mr.nii")
        np.testing.assert_array_equal(ct.affine, mr.affine)
        hounsfield, is_bone = np.asarray(ct.dataobj), np.asarray(label.dataobj) > 0
        assert hounsfield[is_bone].mean() > 100 > 0 > hounsfield[~is_bone].mean()

    folder = tmp_path / "pairs"
    shutil.copytree(made, folder)
    path = folder / "ct" / "b_s2.nii.gz"
    write_nifti(path, read_voxels(path)[1:], AFFINE)
    message = (
        r"expected the CT of .*b_s2_mr.nii.gz, \(8, \d+, \d+\), at .*ct.b_s2.nii.gz, found none"
    )
    with pytest.raises(ValueError, match=message):
        labelled_pairs(folder)
    shutil.rmtree(folder / "ct")
    assert {key for item in labelled_pairs(folder) for key in item} == {"image", "label"}


def test_every_second_shape_has_a_finer_contour_unless_one_is_given(
    made: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    names = ("contour_sigma_px", "contour_low_threshold", "contour_high_threshold")

    def contours_in(folder: Path) -> list[list[float]]:
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("a_s*_mr.json"))]
        return [[record["settings"][name] for name in names] for record in records]

    plain, finer = [1, 20, 40], [2 / 3, 6, 12]
    np.testing.assert_allclose(contours_in(made), [plain, finer, finer, plain])

    contourdiff.make_pairs(
        made.parent / "ct", tmp_path, shapes=2, contour_low_threshold=15.0, **tiny
    )
    assert contours_in(tmp_path) == [[1, 15, 40], [1, 15, 40]]


def test_monai_reads_the_datalist_with_patients_kept_together(made: Path) -> None:
    entries = load_decathlon_datalist(str(made / "datalist.json"), True, "training")
    assert len(entries) == 2 * SHAPES
    folds: dict[str, set[int]] = {}
    for entry in entries:
        for key in ("image", "label"):
            assert Path(entry[key]).is_file()
            assert Path(entry[key]).name.startswith(f"{entry['patient']}_s{entry['shape']}_")
        folds.setdefault(entry["patient"], set()).add(entry["fold"])
    assert folds == {"a": {0}, "b": {1}}
    content = json.loads((made / "datalist.json").read_text())
    assert content["labels"] == {"0": "background", "27": "27", "28": "28"}
    assert content["numTraining"] == len(content["training"])


def test_a_segmentation_trains_on_the_folder_as_it_is(made: Path) -> None:
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "segmentation_train.json"))
    parser.update({"dataset_dir": str(made), "val_fraction": 0.5, "patient_pattern": r"(.*)_s\d+"})
    parser.update({"label_map": LABEL_MAP})
    splits = [parser.get_parsed_content(f"{split}#cases") for split in ("train", "validate")]
    patients = []
    for cases in splits:
        assert len(cases) == SHAPES
        patients.append({Path(case["image"]).name[0] for case in cases})
    assert sorted(patients, key=sorted) == [{"a"}, {"b"}]
    item = parser.get_parsed_content("train#volumes")[0]
    assert set(np.unique(item["label"])) == {0, 1}


def test_nnunet_reads_the_folder_as_it_is(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "Dataset001_Spine"
    main(["to-nnunet", str(made), str(target)])
    assert json.loads((target / "dataset.json").read_text())["numTraining"] == 2 * SHAPES
    image = target / "imagesTr" / "a_s1_0000.nii.gz"
    assert image.read_bytes() == (made / "a_s1_mr.nii.gz").read_bytes()
    label = read_voxels(target / "labelsTr" / "a_s1.nii.gz")
    np.testing.assert_array_equal(label, read_voxels(made / "a_s1_label.nii.gz") > 0)


def test_bones_are_recorded_and_painted_otherwise(
    made: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    ct = made.with_name("ct")
    pairs = make_pairs(ct, tmp_path / "pairs", shapes=2, bone=["27"], **tiny)
    assert json.loads((pairs / "pairs.json").read_text())["settings"]["bone_values"] == [27]
    for case, is_same in (("a", False), ("b", True)):  # the label of b is 28
        for number in range(2):
            name = f"{case}_s{number}"
            record = json.loads((pairs / f"{name}_mr.json").read_text())
            assert record["settings"]["bone_values"] == [27]
            assert record["settings"]["outline"] == (number in outlined_shapes(made, case))
            mr = [read_voxels(folder / f"{name}_mr.nii.gz") for folder in (made, pairs)]
            assert np.array_equal(*mr) == is_same
            label = [read_voxels(folder / f"{name}_label.nii.gz") for folder in (made, pairs)]
            np.testing.assert_array_equal(*label)
    with pytest.raises(ValueError, match=r"expected pairs made with bone_values \[\] in "):
        make_pairs(ct, pairs, shapes=2, **tiny)


def outlined_shapes(folder: Path, case: str) -> list[int]:
    shapes = []
    for number in range(SHAPES):
        record = json.loads((folder / f"{case}_s{number}_mr.json").read_text())
        if record["settings"]["outline"]:
            shapes.append(number)
    return shapes


def test_a_bone_that_is_no_class_is_refused_before_any_work(
    made: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    ct = made.with_name("ct")
    with pytest.raises(ValueError, match="expected values of the label as bone, got 'vertebra'"):
        make_pairs(ct, tmp_path / "pairs", bone=["vertebra"], **tiny)
    message = r"expected bone to be of the classes \['vertebra'\], got 'femur'"
    with pytest.raises(ValueError, match=message):
        make_pairs(ct, tmp_path / "pairs", bone=["femur"], label_map=LABEL_MAP, **tiny)
    assert not (tmp_path / "pairs").exists()


def test_a_pair_is_the_same_alone_and_with_other_shapes(
    made: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    ct = made.with_name("ct")
    alone = make_pairs(
        ct / "b.nii.gz",
        tmp_path / "b",
        label=ct / "labels" / "b.nii.gz",
        shapes=2,
        **tiny,
    )
    whole = voxels_in(made)
    written = voxels_in(alone)
    assert len(written) == 4
    for name, voxels in written.items():
        np.testing.assert_array_equal(voxels, whole[name], err_msg=name)


def test_an_interrupted_call_goes_on_and_keeps_what_is_there(
    made: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "pairs"
    shutil.copytree(made, folder)
    for name in ("a_s1_mr.json", "b_s3_mr.json", "b_s3_mr.nii.gz", "datalist.json", "pairs.png"):
        (folder / name).unlink()
    (folder / "ct" / "b_s0.nii.gz").unlink()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*_mr.nii.gz")}
    make_pairs(made.with_name("ct"), folder, shapes=SHAPES, **tiny)
    again = voxels_in(folder)
    for name, voxels in voxels_in(made).items():
        np.testing.assert_array_equal(voxels, again[name], err_msg=name)
    for name, voxels in voxels_in(made / "ct").items():
        np.testing.assert_array_equal(voxels, read_voxels(folder / "ct" / name), err_msg=name)
    changed = [path.name for path, time in kept.items() if path.stat().st_mtime_ns != time]
    assert changed == ["a_s1_mr.nii.gz"]
    assert (folder / "datalist.json").read_bytes().count(b"_mr.nii.gz") == 2 * SHAPES
    assert not (folder / ".shapes").exists()


def test_pairs_of_other_settings_are_not_mixed(made: Path, tiny: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected pairs made with seed 1 in .*, found .* with 0"):
        make_pairs(made.with_name("ct"), made, shapes=SHAPES, seed=1, **tiny)
    with pytest.raises(ValueError, match=r"expected pairs made with elastic_mm 2 in .* with 5"):
        make_pairs(made.with_name("ct"), made, elastic_mm=2, **tiny)


@pytest.mark.slow
def test_every_contrast_has_its_name_also_a_single_one(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    """All contrasts of the network by default; the second one is added later to the same shapes."""
    torch.manual_seed(0)
    network = ContourUNet(**TINY_ARGUMENTS, contrasts=["t1", "t2"])
    torch.nn.init.normal_(network.out[2].conv.weight, std=0.05)
    weights = tmp_path / "two.pt"
    torch.save(network.state_dict(), weights)
    two = {
        **tiny,
        "network_def": {**TINY_NETWORK, "contrasts": "@contrasts"},
        "contrasts": ["t1", "t2"],
        "weights": weights,
    }
    ct = make_ct(tmp_path / "ct", "a")
    folder = make_pairs(ct, tmp_path / "pairs", shapes=2, contrast="t2", **two)
    names = [f"a_s{n}_t2_{kind}.nii.gz" for n in range(2) for kind in ("label", "mr")]
    assert sorted(voxels_in(folder)) == names
    make_pairs(ct, folder, shapes=2, **two)
    written = voxels_in(folder)
    assert len(written) == 8
    for number in range(2):
        labels = [written[f"a_s{number}_{name}_label.nii.gz"] for name in ("t1", "t2")]
        np.testing.assert_array_equal(*labels)
        images = [written[f"a_s{number}_{name}_mr.nii.gz"] for name in ("t1", "t2")]
        assert not np.array_equal(*images)
    content = json.loads((folder / "datalist.json").read_text())
    assert {entry["contrast"] for entry in content["training"]} == {"t1", "t2"}
    with pytest.raises(ValueError, match="contrast must be out of"):
        make_pairs(ct, tmp_path / "other", contrast="flair", **two)
    assert not (tmp_path / "other").exists()


def test_classes_of_a_label_map_can_be_trained_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    ct = make_ct(tmp_path / "ct")
    folder = make_pairs(ct, tmp_path / "pairs", shapes=1, label_map=LABEL_MAP, **tiny)
    for name in "ab":
        assert set(np.unique(read_voxels(folder / f"{name}_s0_label.nii.gz"))) == {0, 1}
    content = json.loads((folder / "datalist.json").read_text())
    assert content["labels"] == {"0": "background", "1": "vertebra"}
    label_map = LabelMap(folder / "label_map.json")
    assert label_map.values("ct") == {1: [1]}
    assert label_map.values("mr") == LabelMap(LABEL_MAP).values("mr")


def test_a_ct_without_a_label_is_refused_before_any_work(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    ct = make_ct(tmp_path / "ct")
    (ct / "labels" / "b.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"expected a label for each CT, found none for \['b'\]"):
        make_pairs(ct, tmp_path / "pairs", **tiny)
    with pytest.raises(ValueError, match="expected an output folder other than the input"):
        make_pairs(ct, ct, **tiny)
    assert not (tmp_path / "pairs").exists()


def test_a_case_that_gives_no_pair_is_named_and_the_others_are_made(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    """A label without a class, MR instead of CT, and a label that is cut off."""
    ct = make_ct(tmp_path / "ct", "abcd")
    write_nifti(ct / "labels" / "b.nii.gz", np.zeros((8, 34, 36), np.uint8), AFFINE)
    mr = np.clip(ball_ct((8, 34, 36)), 0, 255).astype(np.uint8)
    write_nifti(ct / "c.nii.gz", mr, AFFINE)
    write_nifti(ct / "labels" / "d.nii.gz", np.ones((7, 34, 36), np.uint8), AFFINE)
    with pytest.raises(FailedCasesError, match="3 failed of 4 cases") as caught:
        make_pairs(ct, tmp_path / "pairs", shapes=2, **tiny)
    for text in (
        "b: expected a voxel above 0 in the label of b, found none",
        "c: expected a CT in Hounsfield units: no voxel of c.nii.gz lies below -200 HU",
        "d: expected label d.nii.gz on the image's grid",
    ):
        assert text in str(caught.value)
    content = json.loads((tmp_path / "pairs" / "datalist.json").read_text())
    assert [entry["patient"] for entry in content["training"]] == ["a", "a"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shapes": 0}, "expected shapes to be a whole number from 1"),
        ({"outline_probability": 1.5}, "expected outline_probability to be a number from 0 to 1"),
        ({"label_map": "none.json"}, "expected a label map at none.json, found none"),
        ({"weights": "none.pt"}, "expected weights at none.pt"),
        ({"outline": True}, r"got \['outline'\], which pairs set themselves"),
        ({"spacing": 2}, "expected settings of the config, got 'spacing'"),
        ({"spacing_mm": -1}, "expected spacing_mm to be a number"),
    ],
)
def test_a_bad_setting_is_refused_before_any_work(
    settings: dict[str, Any], message: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    ct = make_ct(tmp_path / "ct", "a")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_pairs(ct, tmp_path / "pairs", **{**tiny, **settings})
    assert not (tmp_path / "pairs").exists()


@pytest.mark.slow
def test_several_processes_make_the_same_pairs(
    made: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("distributed")
    shared = make_pairs(made.with_name("ct"), tmp_path / "pairs", shapes=2, workers=2, **tiny)
    whole = voxels_in(made)
    written = voxels_in(shared)
    assert len(written) == 8
    for name, voxels in written.items():
        np.testing.assert_allclose(voxels, whole[name], atol=1, err_msg=name)


def boundary_with_an_edge(folder: Path, name: str) -> float:
    """Share of the outline of the label within 1.1 mm of an edge of the MR, over all slices."""
    mr, label = (read_voxels(folder / f"{name}_{kind}.nii.gz") for kind in ("mr", "label"))
    near_edge = []
    for image, values in zip(mr, label, strict=True):
        edges = contour_of(image, sigma_px=1.5, low_threshold=20, high_threshold=40)
        boundary = outline_of(values) > 0
        near_edge.append(near(edges > 0, 1.1, (1.1, 1.1))[boundary])
    return float(np.concatenate(near_edge).mean())


@pytest.mark.slow
def test_an_outline_puts_an_edge_where_the_label_ends(real_data: Path, tmp_path: Path) -> None:
    """Six sagittal slices of a real torso CT of 3 mm, with the shipped weights."""
    for name, kind in (("a", "ct"), ("labels/a", "vertebrae")):
        volume = nib.load(real_data / "ct" / f"torso_{kind}.nii.gz").slicer[57:63]
        path = tmp_path / "ct" / f"{name}.nii.gz"
        write_nifti(path, np.asarray(volume.dataobj), volume.affine)
    shares = []
    for probability in (0.0, 1.0):
        folder = make_pairs(
            tmp_path / "ct",
            tmp_path / f"pairs_{probability}",
            shapes=1,
            contrast="t1",
            outline_probability=probability,
            device="cpu",
            progress=False,
        )
        shares.append(boundary_with_an_edge(folder, "a_s0_t1"))
    without, with_outline = shares
    assert without > 0.4
    assert with_outline > without + 0.08
