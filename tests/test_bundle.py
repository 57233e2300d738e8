# SPDX-License-Identifier: Apache-2.0
"""The bundle as its users run it: a folder of CT in, MR on the same grids out, and clear errors."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata

from contourdiff.bundle import config_files, read_config, run_inference_config
from contourdiff.inference.evaluator import CaseEvaluator
from helpers.networks import TINY_NETWORK
from helpers.paths import CONFIGS, REPOSITORY
from helpers.runs import BUNDLE_COMMANDS, QUICK_SETTINGS, run_tiny_inference
from helpers.volumes import CASE_NAMES, OBLIQUE, ball_ct, make_dataset, read_voxels, write_nifti

MAX_EXPRESSIONS = 12
"""``$`` in a config."""
MAX_LINE = 160


@pytest.fixture(scope="module")
def translated(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("three")
    dataset_dir = make_dataset(folder / "ct")
    return dataset_dir, run_tiny_inference(dataset_dir, folder / "mr", tiny_weights)


@pytest.mark.slow
def test_grid_and_label_of_a_translation_are_those_of_the_ct(translated: tuple[Path, Path]) -> None:
    dataset_dir, output_dir = translated
    for name in CASE_NAMES:
        ct, mr = (
            nib.load(dataset_dir / f"{name}.nii.gz"),
            nib.load(output_dir / f"{name}_mr.nii.gz"),
        )
        assert mr.shape == ct.shape
        np.testing.assert_array_equal(mr.affine, ct.affine)
        assert mr.get_data_dtype() == np.float32
        data = np.asarray(mr.dataobj)
        assert data.min() >= 0
        assert data.max() <= 255
        assert data.std() > 1
        label, source = (
            output_dir / f"{name}_label.nii.gz",
            dataset_dir / "labels" / f"{name}.nii.gz",
        )
        np.testing.assert_array_equal(read_voxels(label), read_voxels(source))
        assert nib.load(label).get_data_dtype() == nib.load(source).get_data_dtype()
        np.testing.assert_array_equal(nib.load(label).affine, nib.load(source).affine)


def test_a_translation_has_a_record_and_a_picture(
    translated: tuple[Path, Path], tiny_weights: Path
) -> None:
    _, output_dir = translated
    record = json.loads((output_dir / "a_mr.json").read_text())
    assert record["weights"]["file"] == tiny_weights.name
    assert len(record["weights"]["sha256"]) == 64
    assert record["settings"]["seed"] == 0
    assert record["settings"]["num_inference_steps"] == 2
    assert {"monai", "torch", "scikit-image"} <= record["packages"].keys()
    assert len(record["slices"]) == 10
    drawn = [entry for entry in record["slices"] if not entry["skipped"]]
    assert len(drawn) >= 5
    assert drawn[0]["neighbor_distance"] is None
    assert all(
        {"round", "candidate", "rounds", "neighbor_distance", "accepted", "center_mm"} <= d.keys()
        for d in drawn
    )
    picture = (output_dir / "a_mr.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert sorted(path.name for path in output_dir.iterdir()) == sorted(
        [
            "run.json",
            *(
                f"{name}_{end}"
                for name in CASE_NAMES
                for end in ("label.nii.gz", "mr.json", "mr.nii.gz", "mr.png")
            ),
        ]
    )


@pytest.mark.slow
def test_a_case_is_the_same_alone_in_reversed_order_and_read_by_workers(
    translated: tuple[Path, Path], tiny_weights: Path, tmp_path: Path
) -> None:
    dataset_dir, output_dir = translated
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(dataset_dir / "b.nii.gz", alone)
    result = run_tiny_inference(alone, tmp_path / "out", tiny_weights)
    np.testing.assert_array_equal(
        read_voxels(result / "b_mr.nii.gz"), read_voxels(output_dir / "b_mr.nii.gz")
    )
    assert not (result / "b_label.nii.gz").exists()
    listed = {
        "testing": [
            {"image": f"{name}.nii.gz", "label": f"labels/{name}.nii.gz"}
            for name in CASE_NAMES[::-1]
        ]
    }
    (tmp_path / "list.json").write_text(json.dumps(listed))
    for num_workers in (0, 2):
        changes = {"datalist": str(tmp_path / "list.json"), "num_workers": num_workers}
        backward = run_tiny_inference(
            dataset_dir, tmp_path / f"back{num_workers}", tiny_weights, **changes
        )
        for name in (f"{case}_{end}.nii.gz" for case in CASE_NAMES for end in ("mr", "label")):
            assert (backward / name).read_bytes() == (output_dir / name).read_bytes()


@pytest.mark.slow
def test_existing_outputs_are_kept_without_overwrite(tiny_weights: Path, tmp_path: Path) -> None:
    dataset_dir = make_dataset(tmp_path / "ct", ("a",))
    output_dir = run_tiny_inference(dataset_dir, tmp_path / "mr", tiny_weights)
    before = (output_dir / "a_mr.nii.gz").stat().st_mtime_ns
    run_tiny_inference(dataset_dir, output_dir, tiny_weights, seed=1)
    assert (output_dir / "a_mr.nii.gz").stat().st_mtime_ns == before
    run_tiny_inference(
        dataset_dir, output_dir, tiny_weights, seed=1, overwrite=True, output_dtype="uint8"
    )
    assert nib.load(output_dir / "a_mr.nii.gz").get_data_dtype() == np.uint8
    assert json.loads((output_dir / "a_mr.json").read_text())["settings"]["seed"] == 1


def test_a_ct_of_air_alone_fails_and_leaves_no_empty_mr(tiny_weights: Path, tmp_path: Path) -> None:
    write_nifti(tmp_path / "ct" / "air.nii.gz", np.full((6, 20, 18), -1000, np.int16), OBLIQUE)
    with pytest.raises(
        ValueError, match="air: ValueError: expected slices with a contour, got none"
    ):
        run_tiny_inference(tmp_path / "ct", tmp_path / "mr", tiny_weights)
    assert [path.name for path in (tmp_path / "mr").iterdir()] == ["run.json"]


GOOD = ball_ct((10, 30, 26))


def write_truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(-1000, 1000, GOOD.shape).astype(np.int16)
    write_nifti(path, noise, OBLIQUE)
    path.write_bytes(path.read_bytes()[:3000])


def write_header_that_claims_too_much(path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((30000, 30000, 12))
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))


def write_bone_as(value: float) -> Callable[[Path], object]:
    voxels = np.where(GOOD > 400, value, GOOD).astype(np.float32)
    return lambda path: write_nifti(path, voxels, OBLIQUE)


def write_singular_affine(path: Path) -> None:
    header = nib.Nifti1Image(GOOD, np.eye(4)).header
    header["sform_code"], header["qform_code"] = 2, 0
    for row in ("srow_x", "srow_y", "srow_z"):
        header[row] = (1, 1, 1, 0)
    nib.save(nib.Nifti1Image(GOOD, None, header), path)


def write_with_label_on_another_grid(path: Path) -> None:
    write_nifti(path, GOOD, OBLIQUE)
    label = (GOOD > 200).astype(np.uint8)[:-1]
    write_nifti(path.parent / "labels" / path.name, label, OBLIQUE)


CORRUPTIONS: dict[str, Callable[[Path], object]] = {
    "not NIfTI": lambda path: path.write_bytes(gzip.compress(b"this is no image at all" * 50)),
    "truncated": write_truncated,
    "claims too much": write_header_that_claims_too_much,
    "2-D": lambda path: write_nifti(path, GOOD[0], OBLIQUE),
    "4-D": lambda path: write_nifti(path, np.stack([GOOD] * 2, axis=-1), OBLIQUE),
    "empty": lambda path: write_nifti(path, GOOD[:, :0], OBLIQUE),
    "NaN": write_bone_as(np.nan),
    "infinite": write_bone_as(np.inf),
    "singular affine": write_singular_affine,
    "label on another grid": write_with_label_on_another_grid,
}
BAD_CASES = {
    "not NIfTI": "expected a readable NIfTI file",
    "truncated": "expected a readable NIfTI file",
    "claims too much": r"expected a whole file, but bad.nii.gz of [0-9]+ bytes claims 21600000000 bytes of voxels",
    "2-D": r"expected a volume \(H, W, D\) in bad.nii.gz, got shape \(30, 26\)",
    "4-D": r"got shape \(10, 30, 26, 2\)",
    "empty": r"got shape \(10, 0, 26\)",
    "NaN": "expected finite voxels in bad.nii.gz, got [0-9]+ that are NaN or infinite",
    "infinite": "expected finite voxels",
    "singular affine": "expected an invertible affine in bad.nii.gz",
    "label on another grid": r"expected label bad.nii.gz on the image's grid \(10, 30, 26\), got \(9, 30, 26\)",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_CASES)
def test_a_bad_case_is_named_and_the_others_are_done(
    name: str, tiny_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset_dir = make_dataset(tmp_path / "ct", ("good",))
    CORRUPTIONS[name](dataset_dir / "bad.nii.gz")
    caplog.set_level("INFO")
    with pytest.raises(ValueError, match=f"^1 of 2 cases failed: bad: .*{BAD_CASES[name]}"):
        run_tiny_inference(dataset_dir, tmp_path / "mr", tiny_weights)
    lines = [record.getMessage() for record in caplog.records]
    first_error = next(line for line in lines if line.startswith("bad: "))
    assert re.search(BAD_CASES[name], first_error), first_error
    assert any(line.startswith("1 translated, 0 kept, 1 failed") for line in lines)
    names = {path.name for path in (tmp_path / "mr").iterdir()}
    assert names == {
        "good_label.nii.gz",
        "good_mr.json",
        "good_mr.nii.gz",
        "good_mr.png",
        "run.json",
    }


def make_weights(name: str, path: Path, tiny_weights: Path) -> None:
    state = torch.load(tiny_weights, weights_only=True)
    if name == "truncated":
        path.write_bytes(tiny_weights.read_bytes()[:5000])
    elif name == "other keys":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    elif name == "other shapes":
        torch.save({key: value[..., :1] for key, value in state.items()}, path)
    elif name == "a pickle that runs code":
        torch.save({"network": Malicious(path.parent / "ran")}, path)


class Malicious:
    """Makes a folder when it is unpickled by a loader that lets it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "expected weights at .*, found none"),
        ("truncated", "to be an undamaged file of tensors"),
        ("a pickle that runs code", "to be an undamaged file of tensors"),
        ("other keys", "are of another network: [0-9]+ keys missing"),
        ("other shapes", "[0-9]+ of another shape"),
    ],
)
def test_bad_weights_stop_the_run_before_it_starts(
    name: str, message: str, tiny_weights: Path, tmp_path: Path
) -> None:
    dataset_dir = make_dataset(tmp_path / "ct", ("a",))
    weights = tmp_path / "weights.pt"
    make_weights(name, weights, tiny_weights)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_tiny_inference(dataset_dir, tmp_path / "mr", weights)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "mr").exists()


def test_a_missing_folder_an_empty_one_and_a_file_as_output_are_refused(
    tiny_weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"expected a folder of CT volumes at .*nowhere, found none"
    ):
        run_tiny_inference(tmp_path / "nowhere", tmp_path / "mr", tiny_weights)
    assert not (tmp_path / "mr").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"expected volumes \(.* or CT in DICOM in .*empty, found none"
    ):
        run_tiny_inference(tmp_path / "empty", tmp_path / "mr", tiny_weights)
    dataset_dir = make_dataset(tmp_path / "ct", ("a",))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"expected a folder to write to at .*file"):
        run_tiny_inference(dataset_dir, tmp_path / "file", tiny_weights)


def test_a_volume_that_cannot_be_ct_gets_a_warning(
    tiny_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_nifti(tmp_path / "ct" / "mr.nii.gz", np.clip(ball_ct((10, 30, 26)), 0, None), OBLIQUE)
    output_dir = run_tiny_inference(tmp_path / "ct", tmp_path / "mr", tiny_weights)
    assert "no voxel of mr.nii.gz lies below -200 HU" in caplog.text
    assert (
        "CT in Hounsfield units"
        in json.loads((output_dir / "mr_mr.json").read_text())["warnings"][0]
    )


@pytest.mark.slow
def test_both_run_ids_work_from_the_command_line_in_any_directory(
    tiny_weights: Path, tmp_path: Path
) -> None:
    """A fresh process in another directory: exit status 0, and 1 with one clear last line for an error of the input."""
    dataset_dir = str(make_dataset(tmp_path / "ct", ("a",)))
    (tmp_path / "tiny.json").write_text(
        json.dumps({"network_def": TINY_NETWORK, "min_object_mm2": 100.0, **QUICK_SETTINGS})
    )
    names = [str(CONFIGS / f"{name}.json") for name in ("inference", "fast", "single")]
    configs = str([*names, str(tmp_path / "tiny.json")])
    common = ["--config_file", configs, "--ckpt_path", str(tiny_weights)]
    common += ["--num_inference_steps", "1"]
    commands = [
        ["run", "run", "--dataset_dir", dataset_dir, "--output_dir", "mr0", *common],
        ["run", "inference", "--dataset_dir", dataset_dir, "--output_dir", "mr1", *common],
        ["run", "run", "--dataset_dir", "nowhere", "--output_dir", "mr2", *common],
        ["run", "inference", "--dataset_dir", dataset_dir, "--max_round", "1", *common],
    ]
    call = [sys.executable, "-c", BUNDLE_COMMANDS, json.dumps(commands)]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=True)
    logs = [(tmp_path / f"{number}.log").read_text() for number in range(4)]
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 0, 1, 1], logs
    assert (tmp_path / "mr0" / "a_mr.nii.gz").is_file()
    assert (tmp_path / "mr1" / "a_mr.nii.gz").is_file()
    assert (
        logs[2]
        .strip()
        .splitlines()[-1]
        .startswith("error: expected a folder of CT volumes at nowhere")
    )
    assert (
        logs[3]
        .strip()
        .splitlines()[-1]
        .startswith(
            "error: expected settings of the config, got 'max_round'; did you mean max_rounds?"
        )
    )


@pytest.mark.parametrize(
    ("config", "misspelled", "nearest"),
    [
        ("inference", "num_inference_step", "num_inference_steps"),
        ("inference", "learning_rate", ""),
        ("inference", "pixdim_mm", ""),
        ("train", "learning_rat", "learning_rate"),
        ("segmentation_train", "max_epoch", "max_epochs"),
    ],
)
def test_an_unknown_setting_ends_the_run_and_names_the_nearest(
    config: str, misspelled: str, nearest: str, tmp_path: Path
) -> None:
    parser = ConfigWorkflow(
        str(CONFIGS / f"{config}.json"), logging_file=False, **{misspelled: 1}
    ).parser
    parser["bundle_root"] = str(CONFIGS.parent)
    parser["run"] = [{"_target_": "contourdiff.bundle.check_settings"}]
    with pytest.raises(
        SystemExit, match=f"error: expected settings .* got '{misspelled}'; did you mean {nearest}"
    ):
        parser.get_parsed_content("run::0")
    with pytest.raises(ValueError, match=f"got '{misspelled}'; did you mean {nearest}"):
        read_config(config_files(base=config), {misspelled: 1})


@pytest.mark.parametrize(
    "names",
    [
        *[
            ("inference", name)
            for name in ("fast", "draft", "hip_thigh", "single", "neighbor_guided", "onnx")
        ],
        ("train", "cpu"),
        ("train", "train_neighbor_guided"),
        ("train", "train_refiner"),
        ("train", "train_refiner", "train_one_step"),
        ("train", "train_refiner", "train_one_step", "train_small_refiner"),
        ("train", "train_single"),
        ("train", "train_space"),
        ("train", "train_hip_thigh"),
        ("train", "multi_gpu_train"),
        ("segmentation_train", "multi_gpu_train"),
        ("segmentation_train", "evaluate"),
    ],
    ids="+".join,
)
def test_settings_of_the_shipped_configs_are_all_known(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    """An overlay only changes what its config has, and a user's own entry is known if something refers to it."""
    (tmp_path / "own.json").write_text(
        json.dumps({"my_seed": 5, "seed": "@my_seed", "// mine": "a comment"})
    )
    files = [*config_files(base=names[0], overlays=names[1:]), str(tmp_path / "own.json")]
    workflow = ConfigWorkflow(files, logging_file=False)
    workflow.parser["run"] = [{"_target_": "contourdiff.bundle.check_settings"}]
    workflow.run()


def test_a_misspelled_setting_stops_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="got 'num_inference_step'; did you mean num_inference_steps"
    ):
        run_inference_config(tmp_path, tmp_path / "mr", num_inference_step=15)
    assert not (tmp_path / "mr").exists()


def test_an_error_of_a_component_is_raised_as_it_is(tiny_weights: Path, tmp_path: Path) -> None:
    dataset_dir = make_dataset(tmp_path / "ct", ("a",))
    with pytest.raises(ValueError, match=r"^solver must be one of"):
        run_tiny_inference(dataset_dir, tmp_path / "mr", tiny_weights, solver="euler")
    with pytest.raises(ValueError, match=r"^an uncertainty map requires 2 candidates"):
        run_tiny_inference(
            dataset_dir,
            tmp_path / "mr",
            tiny_weights,
            save_uncertainty_map=True,
            candidates=1,
            max_rounds=1,
        )


def test_looking_at_the_bundle_needs_no_data() -> None:
    """Shipped weights, the config's own paths: nothing is read or written before the run."""
    workflow = ConfigWorkflow(
        str(CONFIGS / "inference.json"), workflow_type="inference", logging_file=False
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert isinstance(workflow.evaluator, CaseEvaluator)
    assert not (CONFIGS.parent / "eval").exists()


@pytest.mark.slow
def test_a_workflow_runs_after_a_look_at_its_parts(tiny_weights: Path, tmp_path: Path) -> None:
    settings = {
        "dataset_dir": str(make_dataset(tmp_path / "ct", ("a", "b"))),
        "output_dir": str(tmp_path / "mr"),
    }
    settings |= {
        "network_def": TINY_NETWORK,
        "ckpt_path": str(tiny_weights),
        "num_inference_steps": 1,
        "min_object_mm2": 100.0,
        **QUICK_SETTINGS,
    }
    files = config_files(overlays=["fast", "single"])
    workflow = ConfigWorkflow(files, workflow_type="inference", logging_file=False, **settings)
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    assert list(workflow.evaluator.completed) == ["a", "b"]


def test_both_workflows_have_the_properties_of_their_type(
    tiny_weights: Path, tmp_path: Path
) -> None:
    dataset_dir = make_dataset(tmp_path / "ct")
    settings = {
        "dataset_dir": str(dataset_dir),
        "output_dir": str(tmp_path / "mr"),
        "logging_file": False,
    }
    tiny = {**settings, "network_def": TINY_NETWORK, "ckpt_path": str(tiny_weights)}
    inference = ConfigWorkflow(config_files(overlays=["single"]), workflow_type="inference", **tiny)
    inference.initialize()
    assert inference.check_properties() == []
    (tmp_path / "list.csv").write_text("file,split\na.nii.gz,train\nb.nii.gz,val\n")
    settings |= {
        "datalist": str(tmp_path / "list.csv"),
        "image_size_px": [32, 32],
        "min_object_mm2": 100.0,
    }
    files = config_files(base="train", overlays=["train_single"])
    train = ConfigWorkflow(files, workflow_type="train", network_def=TINY_NETWORK, **settings)
    train.initialize()
    assert train.check_properties() == []


def test_the_metadata_fits_the_schema(tmp_path: Path) -> None:
    schema = REPOSITORY.parent / "shared" / "schemas" / "meta_schema_20240725.json"
    if not schema.is_file():
        pytest.skip("the metadata schema is not beside the repository")
    shutil.copy(schema, tmp_path / "schema.json")
    verify_metadata(
        meta_file=str(CONFIGS / "metadata.json"), filepath=str(tmp_path / "schema.json")
    )


def test_shared_settings_of_training_and_inference_agree() -> None:
    inference, train = (
        json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("inference", "train")
    )
    for config in (inference, train):  # names of the contrasts here, patterns of their files there
        config["network_def"] = {
            k: v for k, v in config["network_def"].items() if not k.startswith("contrast")
        }
    shared = ("network_def", "scheduler", "spacing_mm", "axcodes", "slice_axis", "filter_classes")
    for key in (*shared, "contour_sigma_px", "contour_low_threshold", "contour_high_threshold"):
        assert inference[key] == train[key], key


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_spacing_and_slice_axis_are_the_whole_geometry(
    axis: int, inference_parser: Callable[..., ConfigParser], tmp_path: Path
) -> None:
    """``slice_axis`` alone decides which axis keeps its spacing."""
    path = write_nifti(tmp_path / "a.nii.gz", ball_ct((10, 30, 26)), np.diag([3.0, 2.5, 4.0, 1.0]))
    preprocessing = inference_parser(slice_axis=axis, spacing_mm=5.0).get_parsed_content(
        "preprocessing"
    )
    contour = preprocessing({"image": str(path)})["image"]
    expected = [round(extent / 5) for extent in (30, 75, 104)]
    expected[axis] = (10, 30, 26)[axis]
    np.testing.assert_allclose(contour.shape[1:], expected, atol=1)
    assert contour.shape[1 + axis] == expected[axis]
    spacing = [5.0] * 3
    spacing[axis] = (3.0, 2.5, 4.0)[axis]
    np.testing.assert_allclose(contour.pixdim, spacing)


@pytest.mark.slow
def test_the_record_holds_the_settings_section_whole(tiny_weights: Path, tmp_path: Path) -> None:
    """Every setting with the value it had, spacing, network, scheduler and device among them."""
    dataset_dir = make_dataset(tmp_path / "ct", ("a",))
    output_dir = run_tiny_inference(
        dataset_dir,
        tmp_path / "mr",
        tiny_weights,
        slice_axis=1,
        spacing_mm=3.0,
        device="cpu",
        amp=False,
    )
    recorded = json.loads((output_dir / "a_mr.json").read_text())["settings"]
    names = list(json.loads((CONFIGS / "inference.json").read_text()))
    start = names.index("// settings") + 1
    stop = next(at for at in range(start, len(names)) if names[at].startswith("//"))
    assert list(recorded) == [*names[start:stop], "network_def", "scheduler", "contour"]
    assert (recorded["slice_axis"], recorded["spacing_mm"], recorded["device"]) == (1, 3.0, "cpu")
    assert recorded["network_def"] == TINY_NETWORK
    assert recorded["scheduler"]["prediction_type"] == "v_prediction"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_configs_read_like_a_letter(path: Path) -> None:
    text = path.read_text()
    assert text.count("$") <= MAX_EXPRESSIONS
    assert "lambda" not in text
    if path.stem != "metadata":
        assert max(map(len, text.splitlines())) <= MAX_LINE


@pytest.mark.slow
@pytest.mark.parametrize("text", ["true", "True", "TRUE"])
def test_monai_bundle_run_takes_flags_in_any_case(
    text: str, tiny_weights: Path, tmp_path: Path
) -> None:
    """Its command line leaves ``true`` a text."""
    network = {**TINY_NETWORK, "use_flash_attention": text.swapcase()}
    settings = {
        **{"dataset_dir": str(make_dataset(tmp_path / "ct", ("a",))), "network_def": network},
        **{"output_dir": str(tmp_path / "mr"), "ckpt_path": str(tiny_weights)},
        **{"num_inference_steps": 1, "candidates": 1, "max_rounds": 1, "min_object_mm2": 100.0},
        **QUICK_SETTINGS,
    }
    record = tmp_path / "mr" / "a_mr.json"
    record.parent.mkdir()
    record.write_text("{}")
    common = {"config_file": config_files(overlays=["single"]), "logging_file": False, **settings}
    for overwrite in (text, "False"):
        monai.bundle.run(**common, progress="FALSE", overwrite=overwrite)  # type: ignore[arg-type]
    content = json.loads(record.read_text())
    assert content["settings"]["network_def"]["use_flash_attention"] is True
    with pytest.raises(SystemExit, match=r"expected overwrite to be true or false, got 'yes'"):
        monai.bundle.run(**common, overwrite="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["dataset_dir", "output_dir", "ckpt_path", "case_suffix"])
def test_a_number_sign_that_monai_replaces_is_named(name: str, tmp_path: Path) -> None:
    settings = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "mr")}
    settings[name] = str(tmp_path / "a#1")
    with pytest.raises(
        SystemExit, match=rf"^error: expected {name} without #, which MONAI .*/a::1'; rename it"
    ):
        monai.bundle.run(config_file=config_files(), logging_file=False, **settings)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_bundle_and_weights_in_a_folder_with_a_number_sign_translate(
    tiny_weights: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(CONFIGS.parent, tmp_path / "a#1" / "bundle")
    weights = shutil.copy(tiny_weights, root / "models" / "#.pt")
    output_dir = run_tiny_inference(
        make_dataset(tmp_path / "ct", ("a",)), tmp_path / "mr", Path(weights), bundle=root
    )
    assert (output_dir / "a_mr.nii.gz").is_file()
    parser = read_config(config_files(root, base="segmentation_train"), {})
    assert Path(parser.get_parsed_content("label_map")).is_file()
    with pytest.raises(ValueError, match=r"expected no # in case_suffix, got '#', a reference"):
        read_config(config_files(), {"case_suffix": "#"})
