# SPDX-License-Identifier: Apache-2.0
"""One call from Python, one command: any input, the same MR, returned or named as it was given."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

import contourdiff
from contourdiff.cli import main
from contourdiff.inference.outputs import TranslationOutputs
from contourdiff.inference.summary import FailedCasesError
from contourdiff.metrics.contour_fidelity import ContourFidelityCheck
from contourdiff.networks import ContourUNet
from contourdiff.translation import translate, translate_path
from helpers.dicom import write_series
from helpers.networks import TINY_NETWORK
from helpers.paths import CONFIGS
from helpers.runs import QUICK_SETTINGS, run_tiny_inference
from helpers.volumes import ball_ct, make_dataset, oblique_affine, read_voxels, write_nifti

AFFINE = oblique_affine((3.0, 2.5, 4.0))
CT = ball_ct((10, 30, 26))
LABEL = (CT > 200).astype(np.uint8) * 30


@pytest.fixture
def tiny(tiny_weights: Path) -> dict[str, Any]:
    """Settings of a small untrained network."""
    return {
        "overlays": ("single",),
        "network_def": TINY_NETWORK,
        "weights": tiny_weights,
        "num_inference_steps": 2,
        "candidates": 1,
        "max_rounds": 1,
        "min_object_mm2": 100.0,
        "device": "cpu",
        **QUICK_SETTINGS,
    }


@pytest.fixture
def ct_file(tmp_path: Path) -> Path:
    write_nifti(tmp_path / "in" / "labels" / "anna.nii.gz", LABEL, AFFINE)
    return write_nifti(tmp_path / "in" / "anna.nii.gz", CT, AFFINE)


@pytest.mark.slow
def test_an_image_comes_back_as_it_was_given(
    ct_file: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    expected = contourdiff.translate(ct_file, **tiny)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is kept
    assert isinstance(expected, nib.Nifti1Image)
    np.testing.assert_array_equal(expected.affine, nib.load(ct_file).affine)
    mr = np.asarray(expected.dataobj)
    assert mr.std() > 1

    given = nib.Nifti1Image(CT, AFFINE)
    image = contourdiff.translate(given, label=nib.Nifti1Image(LABEL, AFFINE), case="anna", **tiny)
    np.testing.assert_array_equal(np.asarray(image.dataobj), mr)
    np.testing.assert_array_equal(image.affine, given.affine)

    simple = sitk.ReadImage(str(ct_file))
    result = contourdiff.translate(simple, case="anna", **tiny)
    np.testing.assert_allclose(sitk.GetArrayFromImage(result).transpose(), mr, atol=0.01)
    assert (result.GetOrigin(), result.GetDirection()) == (
        simple.GetOrigin(),
        simple.GetDirection(),
    )

    other = itk.imread(str(ct_file))
    result = contourdiff.translate(other, case="anna", **tiny)
    np.testing.assert_allclose(itk.array_from_image(result).transpose(), mr, atol=0.01)
    np.testing.assert_array_equal(
        np.asarray(result.GetDirection()), np.asarray(other.GetDirection())
    )

    tensor = MetaTensor(
        torch.as_tensor(CT)[None].float(), affine=torch.as_tensor(AFFINE), meta={"who": "anna"}
    )
    result = contourdiff.translate(tensor, case="anna", **tiny)
    assert isinstance(result, MetaTensor)
    assert result.shape == tensor.shape
    assert result.meta["who"] == "anna"
    np.testing.assert_array_equal(result.numpy()[0], mr)


@pytest.mark.slow
def test_seed_and_name_of_a_ct_decide_its_mr_and_other_images_are_refused(
    ct_file: Path, tiny: dict[str, Any]
) -> None:
    image = nib.load(ct_file)
    first, second, third = (
        np.asarray(contourdiff.translate(image, **tiny, **options).dataobj)
        for options in ({"case": "a"}, {"case": "b"}, {"case": "a", "seed": 1})
    )
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, third)
    with pytest.raises(
        TypeError, match="expected a path, a nibabel, SimpleITK or ITK image or a MetaTensor"
    ):
        contourdiff.translate(CT, **tiny)
    with pytest.raises(FileNotFoundError, match=r"expected a CT file .* found nothing"):
        contourdiff.translate("nowhere.nii.gz", **tiny)
    with pytest.raises(FileNotFoundError, match="expected a label at"):
        contourdiff.translate(ct_file, "nowhere.nii.gz", **tiny)
    with pytest.raises(ValueError, match="expected a device that torch can use, got 'abacus'"):
        contourdiff.translate(ct_file, **{**tiny, "device": "abacus"})
    with pytest.raises(ValueError, match="on the image's grid"):
        contourdiff.translate(image, nib.Nifti1Image(LABEL[1:], AFFINE), **tiny)


@pytest.mark.slow
def test_two_contrasts_are_a_dictionary(ct_file: Path, tmp_path: Path) -> None:
    short: dict[str, Any] = {
        "num_inference_steps": 1,
        "num_refinement_steps": 1,
        "candidates": 1,
        "max_rounds": 1,
        **QUICK_SETTINGS,
    }
    images = contourdiff.translate(ct_file, contrast="t1,t2", min_object_mm2=100.0, **short)
    assert list(images) == ["t1", "t2"]
    first, second = (np.asarray(image.dataobj) for image in images.values())
    assert not np.array_equal(first, second)
    label = ct_file.parent / "labels" / "anna.nii.gz"
    paths = contourdiff.translate(
        ct_file, label, tmp_path / "x.nrrd", contrast=["t1", "t2"], min_object_mm2=100.0, **short
    )
    assert paths == {"t1": tmp_path / "x_t1.nrrd", "t2": tmp_path / "x_t2.nrrd"}
    kinds = ("", "_label")
    expected = [f"x_{name}{kind}.nrrd" for name in ("t1", "t2") for kind in kinds]
    expected += [f"x_{name}.{kind}" for name in ("t1", "t2") for kind in ("json", "png")]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(expected)
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(sitk.ReadImage(str(paths["t2"]))).transpose(), second, atol=0.01
    )


@pytest.mark.slow
def test_a_file_is_named_as_asked_and_never_overwritten_unasked(
    ct_file: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    expected = run_tiny_inference(
        ct_file.parent, tmp_path / "folder", tiny["weights"], candidates=1, max_rounds=1
    )
    output = tmp_path / "out" / "mr.nii.gz"
    label = ct_file.parent / "labels" / "anna.nii.gz"
    (result,) = translate_path(ct_file, output, label=label, **tiny)
    assert result.mr == output
    np.testing.assert_array_equal(read_voxels(output), read_voxels(expected / "anna_mr.nii.gz"))
    np.testing.assert_array_equal(read_voxels(output.with_name("mr_label.nii.gz")), LABEL)
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "mr.json",
        "mr.nii.gz",
        "mr.png",
        "mr_label.nii.gz",
    ]
    (again,) = translate_path(ct_file, output, overwrite=True, **tiny)
    np.testing.assert_array_equal(read_voxels(again.mr), read_voxels(expected / "anna_mr.nii.gz"))
    assert not output.with_name("mr_label.nii.gz").exists()  # of the translation before
    with pytest.raises(ValueError, match=r"expected a single case for the file .* got 3"):
        translate_path(make_dataset(tmp_path / "three"), tmp_path / "new.nii.gz", **tiny)
    assert not (tmp_path / "new.nii.gz").exists()


@pytest.fixture
def used_overlays(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Overlays of every run since, which does nothing."""
    overlays: list[list[str]] = []
    monkeypatch.setattr(
        "contourdiff.bundle.run_inference_config",
        lambda **settings: overlays.append(settings["overlays"]),
    )
    return overlays


def test_an_anatomy_is_an_overlay_and_lumbar_the_default(
    ct_file: Path, tmp_path: Path, used_overlays: list[list[str]]
) -> None:
    for options in ({}, {"anatomy": "lumbar"}, {"anatomy": "hip_thigh", "fast": True}):
        options = {"fast": False, **options}
        translate_path(ct_file, tmp_path / "mr", overlays=["single"], **options)
    assert used_overlays == [["single"], ["single"], ["hip_thigh", "fast", "single"]]


@pytest.mark.parametrize(
    ("options", "on_a_gpu", "overlays"),
    [
        ([], False, ["fast"]),
        ([], True, []),
        (["--device", "cpu"], True, ["fast"]),
        (["--full"], False, []),
        (["--fast"], True, ["fast"]),
        (["--draft"], True, ["draft"]),
    ],
)
def test_a_cpu_is_fast_unless_told_otherwise(
    options: list[str],
    on_a_gpu: bool,
    overlays: list[str],
    ct_file: Path,
    tmp_path: Path,
    used_overlays: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: on_a_gpu)
    main(["translate", str(ct_file), str(tmp_path / "mr"), *options])
    assert used_overlays == [overlays]


def tiny_command(tiny: dict[str, Any]) -> list[str]:
    """The same settings on the command line."""
    network = ",".join(f"'{name}': {value!r}" for name, value in TINY_NETWORK.items())
    settings = {
        name: tiny[name]
        for name in (
            "num_inference_steps",
            "candidates",
            "max_rounds",
            "min_object_mm2",
            *QUICK_SETTINGS,
        )
    }
    pairs = [f"{name}={value}" for name, value in settings.items()]
    pairs.append(f"network_def={{{network}}}")
    return [
        "--weights",
        str(tiny["weights"]),
        "--device",
        "cpu",
        "--overlays",
        "single",
        "--settings",
        *pairs,
    ]


@pytest.mark.slow
def test_one_command_translates_a_dicom_folder(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_series(tmp_path / "anna", ball_ct((12, 40, 48)))
    main(["translate", str(folder), str(tmp_path / "mr"), "--json", *tiny_command(tiny)])
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == {"results"}
    (result,) = printed["results"]
    assert result["case"] == "anna"
    mr, ct = nib.load(result["mr"]), nib.load(result["ct"])
    assert mr.shape == (48, 40, 12)
    np.testing.assert_array_equal(mr.affine, ct.affine)
    assert Path(result["picture"]).read_bytes().startswith(b"\x89PNG")
    assert json.loads(Path(result["record"]).read_text())["image"] == "anna"

    write_series(tmp_path / "anna" / "2", ball_ct((12, 40, 48)), uid="1.2.3.2")
    with pytest.raises(
        SystemExit, match=r"^error: .*1\.2\.3\.1 \(CT 'bone 1', 12 slices\); 1\.2\.3\.2"
    ):
        main(["translate", str(folder), str(tmp_path / "one.nii.gz"), *tiny_command(tiny)])
    main(
        [
            "translate",
            str(folder),
            str(tmp_path / "one.mha"),
            "--series",
            "1.2.3.2",
            "-q",
            *tiny_command(tiny),
        ]
    )
    assert (tmp_path / "one.mha").is_file()
    assert (tmp_path / "one_ct.nii.gz").is_file()


@pytest.mark.slow
def test_a_folder_where_one_case_fails_reports_it_and_does_the_others(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset_dir = make_dataset(tmp_path / "ct", ("a", "b"))
    (dataset_dir / "c.nrrd").write_text("no volume")
    with pytest.raises(
        SystemExit, match=r"^error: 1 of 3 cases failed: c: expected a readable volume"
    ):
        main(["translate", str(dataset_dir), str(tmp_path / "mr"), "--json", *tiny_command(tiny)])
    printed = json.loads(capsys.readouterr().out)
    assert "1 of 3 cases failed" in printed["error"]
    results = {result["case"]: result for result in printed["results"]}
    assert [results[case]["status"] for case in "abc"] == ["translated", "translated", "failed"]
    for case in "ab":
        assert results[case]["seconds"] > 0
        assert 0 <= results[case]["fidelity"] <= 1
        assert results[case]["warnings"] == []
        assert results[case]["error"] is None
        assert Path(results[case]["mr"]).is_file()
    assert "expected a readable volume" in results["c"]["error"]
    assert results["c"]["mr"] is None
    assert [path.name for path in sorted((tmp_path / "mr").glob("*_mr.nii.gz"))] == [
        "a_mr.nii.gz",
        "b_mr.nii.gz",
    ]


@pytest.mark.slow
def test_the_standard_output_of_a_program_is_json_alone(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    dataset_dir = make_dataset(tmp_path / "ct", ("a",))
    (dataset_dir / "b.nii").write_text("no volume")
    command = [
        sys.executable,
        "-m",
        "contourdiff",
        "translate",
        str(dataset_dir),
        str(tmp_path / "mr"),
        "--json",
    ]
    words = [word for word in tiny_command(tiny) if word != "acceleration=None"]  # OpenVINO, too
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout).keys() == {"error", "results"}


@pytest.mark.slow
@pytest.mark.parametrize("verbose", [False, True])
def test_warnings_of_itk_are_for_verbose_runs(
    verbose: bool, tiny: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It writes to the file descriptor; here two micrometers between slices."""

    def shift(dataset: Any, number: int) -> None:
        x, y, z = map(float, dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, y, round(z + 0.002 * (number % 2), 4)]

    folder = write_series(tmp_path / "anna", ball_ct((6, 40, 48)), shift)
    flags = ["--verbose"] if verbose else []
    main(["translate", str(folder), str(tmp_path / "mr"), *flags, *tiny_command(tiny)])
    assert ("Non uniform sampling" in capfd.readouterr().err) == verbose


@pytest.mark.slow
def test_no_temporary_folder_is_named(
    tiny: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ct = make_dataset(tmp_path / "ct", ("a",)) / "a.nii.gz"
    command = ["translate", str(ct), str(tmp_path / "mr.nii.gz"), *tiny_command(tiny)]
    main(command)
    printed = "".join(capfd.readouterr())
    assert f"done, {tmp_path / 'mr.nii.gz'}; " in printed
    assert f"results are in {tmp_path}" in printed
    assert ".contourdiff_" not in printed
    with pytest.raises(ValueError, match=r"^1 of 1 cases failed: ct: .*") as caught:
        translate(nib.Nifti1Image(np.full((4, 4, 4), np.nan), np.eye(4)), **tiny)
    assert tempfile.gettempdir() not in str(caught.value)


def test_a_contrast_that_fails_leaves_the_other_one_of_a_single_file(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs_of = TranslationOutputs.__call__

    def fail(self: TranslationOutputs, engine: Any) -> None:
        if engine.state.output[0]["contrast"] == 1:
            raise RuntimeError("t2 is bad")
        outputs_of(self, engine)

    monkeypatch.setattr(TranslationOutputs, "__call__", fail)
    ct = make_dataset(tmp_path / "ct", ("a",)) / "a.nii.gz"
    network = {**TINY_NETWORK, "contrasts": "@contrasts"}
    torch.manual_seed(0)
    built = {key: value for key, value in network.items() if key != "_target_"}
    state = ContourUNet(**{**built, "contrasts": ["t1", "t2"]}).state_dict()
    torch.save(state, tmp_path / "two.pt")
    settings = {**tiny, "weights": tmp_path / "two.pt", "network_def": network}
    with pytest.raises(FailedCasesError, match="1 of 2 cases failed: a_t2") as caught:
        translate_path(
            ct, tmp_path / "mr.nii.gz", contrast="t1,t2", contrasts=["t1", "t2"], **settings
        )
    assert [result.status for result in caught.value.results] == ["translated", "failed"]
    assert (tmp_path / "mr_t1.nii.gz").is_file()
    assert not (tmp_path / "mr_t2.nii.gz").exists()


def test_a_finished_file_is_kept_and_gets_its_label(
    ct_file: Path, tiny: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, label = tmp_path / "mr.nii.gz", ct_file.parent / "labels" / "anna.nii.gz"
    caplog.set_level("INFO")
    (first,) = translate_path(ct_file, output, **tiny)
    before = first.mr.read_bytes(), first.record.read_bytes()
    translate_path(ct_file, output, **tiny)
    assert (first.mr.read_bytes(), first.record.read_bytes()) == before
    assert any("anna: kept" in record.getMessage() for record in caplog.records)
    (again,) = translate_path(ct_file, output, label=label, **tiny)
    assert again.label == tmp_path / "mr_label.nii.gz"
    np.testing.assert_array_equal(read_voxels(again.label), LABEL)
    assert first.mr.read_bytes() == before[0]
    other = write_nifti(tmp_path / "other" / "anna.nii.gz", CT + 1, AFFINE)
    with pytest.raises(
        ValueError, match=r"expected no file at .*mr\.nii\.gz, found .*mr\.json; pass"
    ):
        translate_path(other, output, **tiny)


@pytest.mark.parametrize("name", ["scan.json", "scan.png", "scan_label.nrrd", "scan_ct.nii.gz"])
def test_a_file_that_nobody_named_is_not_replaced(
    name: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """The record over the sidecar of dcm2niix, for example."""
    folder = write_series(tmp_path / "anna", ball_ct((12, 40, 48)))
    label = write_nifti(tmp_path / "label.nii.gz", np.zeros((48, 40, 12), np.uint8), AFFINE)
    (tmp_path / name).write_text("{}")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"expected no file at .*{name}, found .*pass --overwrite"):
        translate_path(folder, tmp_path / "scan.nrrd", label=label, **tiny)
    assert (tmp_path / name).read_text() == "{}"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["ct.nii.gz", "link.nii.gz", "ct_label.nii.gz", "../in/ct.nii.gz"])
def test_the_input_is_never_a_target(name: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    """Even with overwrite, under any name of it."""
    folder = tmp_path / "in"
    ct = write_nifti(folder / "ct.nii.gz", CT, AFFINE)
    label = write_nifti(folder / "new_label.nii.gz", LABEL, AFFINE)
    (folder / "link.nii.gz").symlink_to(ct)
    output = folder / name
    if name == "ct_label.nii.gz":
        output = folder / "new.nii.gz"
    before = ct.read_bytes(), label.read_bytes()
    with pytest.raises(
        ValueError, match="expected outputs other than the input and its label, got"
    ):
        translate_path(ct, output, label=label, overwrite=True, **tiny)
    assert (ct.read_bytes(), label.read_bytes()) == before


def test_the_list_of_cases_is_not_replaced_by_their_table(
    ct_file: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    cases = tmp_path / "cases.csv"
    cases.write_text(f"image,label\n{ct_file},\n")
    with pytest.raises(ValueError, match=r"expected outputs other than the input .*cases\.csv"):
        translate_path(cases, tmp_path / "mr", stats=cases, **tiny)
    assert cases.read_text().startswith("image")


def test_masks_become_the_label_of_a_single_ct(
    ct_file: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    masks = tmp_path / "segmentations"
    for name, value in (("vertebrae_L5", LABEL > 0), ("sacrum", CT < -900)):
        write_nifti(masks / f"{name}.nii.gz", value.astype(np.uint8), AFFINE)
    (result,) = translate_path(ct_file, tmp_path / "x.nii.gz", label=masks, **tiny)
    expected = np.where(LABEL > 0, 27, np.where(CT < -900, 25, 0))
    np.testing.assert_array_equal(read_voxels(Path(str(result.label))), expected)
    classes = {"25": "sacrum", "27": "vertebrae_L5"}
    assert json.loads(result.record.read_text())["classes"] == classes
    assert json.loads((tmp_path / "x_label.json").read_text()) == {"classes": classes}


def test_an_anatomy_without_weights_is_an_error(ct_file: Path, tmp_path: Path) -> None:
    """Hips were painted as spines."""
    bundle = tmp_path / "bundle"
    shutil.copytree(CONFIGS, bundle / "configs")
    for options in ({"anatomy": "hip_thigh"}, {"overlays": ["hip_thigh"]}):
        with pytest.raises(FileNotFoundError, match=r"weights at .*hip_thigh\.pt, found none"):
            translate_path(ct_file, tmp_path / "mr", bundle=bundle, **options)
    assert not (tmp_path / "mr").exists()


def test_an_outline_changes_what_the_networks_see_and_not_what_fidelity_compares_with(
    ct_file: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = ContourFidelityCheck.__call__
    compared = []

    def remember(self: ContourFidelityCheck, contours: torch.Tensor, *arguments: Any) -> Any:
        compared.append(np.array(contours))
        return check(self, contours, *arguments)

    monkeypatch.setattr(ContourFidelityCheck, "__call__", remember)
    images = []
    for outline in (False, True):
        folder = tmp_path / f"mr_{outline}"
        (result,) = translate_path(ct_file.parent, folder, outline=outline, **tiny)
        assert json.loads(result.record.read_text())["settings"]["outline"] is outline
        images.append(read_voxels(result.mr))
    np.testing.assert_array_equal(*compared)
    assert not np.array_equal(*images)
    (named,) = translate_path(ct_file.parent, tmp_path / "mr_named", outline=["anna"], **tiny)
    np.testing.assert_array_equal(read_voxels(named.mr), images[1])


def test_an_outline_without_a_label_is_an_error_of_the_case(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    dataset_dir = make_dataset(tmp_path / "ct", ("a", "b"))
    (dataset_dir / "labels" / "b.nii.gz").unlink()
    command = ["translate", str(dataset_dir), str(tmp_path / "mr"), "--outline"]
    message = r"1 of 2 cases failed: b: expected a label, whose outline .* without --outline"
    with pytest.raises(SystemExit, match=message):
        main([*command, *tiny_command(tiny)])
    assert (tmp_path / "mr" / "a_mr.nii.gz").is_file()
    with pytest.raises(
        SystemExit, match="1 of 2 cases failed: b: expected a label, as bone_values"
    ):
        main([*command[:-1], *tiny_command(tiny), "bone_values=[27]"])
    with pytest.raises(ValueError, match="expected outline to be true or false, got 'yes'"):
        translate_path(dataset_dir, tmp_path / "other", outline="yes", **tiny)
