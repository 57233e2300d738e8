# SPDX-License-Identifier: Apache-2.0
"""The single graph paints what the translation paints, from the same noise; the page's recipe does, too."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contourdiff import __version__, cli
from contourdiff.bundle import config_files, read_config
from contourdiff.deploy.single_graph import FILE_NAME, export_single_graph
from contourdiff.inference import CascadeDenoiser, Denoiser, Execution
from contourdiff.networks import ContourUNet
from contourdiff.phantom import write_phantom
from contourdiff.sampling.noise import CandidateNoise, NoiseStream
from contourdiff.weights import sha256_of
from helpers.networks import TINY_ARGUMENTS
from helpers.paths import CONFIGS, REPOSITORY

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[onnx]'")

CPU = "$torch.device('cpu')"
MODELS = CONFIGS.parent / "models"
SEVERAL = {"steps": 4, "refinement_steps": 2, "refinement_guidance": 1.5}
SMALL = {**TINY_ARGUMENTS, "norm_num_groups": 8}
"""A quick network; a norm of several channels keeps what distinguishes them, such as the contrast."""


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    cli.main(["export", str(folder), "--single"])
    return folder / FILE_NAME


def session_of(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def facts_of(path: Path) -> dict[str, Any]:
    properties = session_of(path).get_modelmeta().custom_metadata_map
    return {name: json.loads(text) for name, text in properties.items()}


def translator(overlays: tuple[str, ...] = (), **settings: Any) -> Denoiser | CascadeDenoiser:
    """The product's denoiser of a config."""
    parser = read_config(config_files(overlays=overlays), {"device": CPU, **settings})
    network = parser.get_parsed_content("network")
    sampler = parser.get_parsed_content("sampler")
    return Execution(batch_size=2).denoiser(network, sampler)


def assert_same(path: Path, denoiser: Denoiser | CascadeDenoiser, contrasts: int) -> None:
    """For each contrast, at sizes and batches that the export checks at none, from the noise of candidates."""
    session = session_of(path)
    noise = CandidateNoise(5)
    painted = []
    for count, height, width in ((3, 48, 80), (1, 112, 16)):
        generator = torch.Generator().manual_seed(height)
        contours = (torch.rand(count, 1, height, width, generator=generator) < 0.1).float()
        places = [("case", number, 0, 0) for number in range(count)]
        factor = 2 if isinstance(denoiser, CascadeDenoiser) else 1
        inputs = {
            "contour": contours,
            "noise": noise.stream(places, (1, height // factor, width // factor)).draw(),
        }
        if factor == 2:
            refined = [("case refined", *place[1:]) for place in places]
            inputs["refiner_noise"] = noise.stream(refined, (1, height, width)).draw()
        for label in range(max(contrasts, 1)):
            if contrasts:
                inputs["class_labels"] = torch.full((count,), label)
            arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
            (mr,) = session.run(["mr"], arrays)
            expected = denoiser(contours, places, noise, label if contrasts else None)
            assert expected.std() > 5
            np.testing.assert_allclose(mr[:, 0], expected.numpy(), rtol=0, atol=0.05)
            painted.append(mr)
    if contrasts:
        assert np.abs(painted[0] - painted[1]).mean() > 1  # the label is not frozen


@pytest.mark.slow
def test_one_evaluation_of_each_network_is_the_default(single_file: Path) -> None:
    denoiser = translator(("draft",))
    assert_same(single_file, denoiser, contrasts=2)


@pytest.mark.slow
def test_several_steps_and_guidance_are_the_translations(tmp_path: Path) -> None:
    differences = export_single_graph(tmp_path, **SEVERAL)
    assert set(differences) == {tmp_path / FILE_NAME}
    denoiser = translator(num_inference_steps=4, num_refinement_steps=2, refinement_guidance=1.5)
    assert_same(tmp_path / FILE_NAME, denoiser, contrasts=2)
    facts = facts_of(tmp_path / FILE_NAME)
    steps = facts["steps"], facts["refinement_steps"], facts["refinement_guidance"]
    assert steps == (4, 2, 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("contrasts", [[], ["t1", "pd"]])
def test_a_single_network_takes_one_noise(contrasts: list[str], tmp_path: Path) -> None:
    settings = small_network(tmp_path, contrasts=contrasts)
    export_single_graph(tmp_path, overlays=["single"], steps=3, **settings)
    denoiser = translator(("single",), num_inference_steps=3, **settings)
    assert_same(tmp_path / FILE_NAME, denoiser, contrasts=len(contrasts))
    facts = facts_of(tmp_path / FILE_NAME)
    assert (facts["factor"], facts["contrasts"], facts["spacing_mm"]) == (1, contrasts, 2.2)
    assert facts["weights_sha256"] == {"model": sha256_of(settings["ckpt_path"])}


def small_network(folder: Path, contrasts: list[str], in_channels: int = 2) -> dict[str, Any]:
    """Settings of a single network with drawn weights."""
    torch.manual_seed(0)
    network = ContourUNet(in_channels, contrasts=contrasts, **SMALL)
    for weight in network.parameters():
        if not weight.any():  # MONAI starts the last layer of every block with 0
            nn.init.normal_(weight, std=0.05)
    torch.save(network.state_dict(), folder / "small.pt")
    settings: dict[str, Any] = {"network_def#in_channels": in_channels, "contrasts": contrasts}
    for name, value in SMALL.items():
        settings[f"network_def#{name}"] = value
    return {**settings, "ckpt_path": str(folder / "small.pt")}


def test_the_file_says_how_its_contour_is_made(single_file: Path) -> None:
    facts = facts_of(single_file)
    parser = read_config(config_files(), {})
    for name in ("spacing_mm", "window_hu", "contour_sigma_px", "contour_low_threshold"):
        assert facts[name] == parser.get_parsed_content(name)
    assert facts["contrasts"] == ["t1", "t2", "t2_space"]
    assert (facts["size_divisor"], facts["factor"]) == (16, 2)
    assert (facts["steps"], facts["refinement_steps"]) == (1, 1)
    assert (facts["contour"], facts["contourdiff"]) == ("Contourd", __version__)
    for name, file in (("model", "model.pt"), ("refiner", "refiner_fast.pt")):
        assert facts["weights_sha256"][name] == sha256_of(MODELS / file)


def run_recipe(ct: Path, single_file: Path, spacing_mm: float) -> dict[str, Any]:
    """Run the page's recipe in the folder of a CT of one sagittal slice, and return all that it names."""
    folder = ct.parent
    (folder / "out").mkdir()
    (folder / "out" / FILE_NAME).symlink_to(single_file)
    np.save(folder / "ct_slice.npy", np.asarray(nib.load(ct).dataobj)[0])
    page = (REPOSITORY / "docs" / "deploy.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    (recipe,) = [block for block in blocks if FILE_NAME in block]
    recipe = recipe.replace("[0.8, 0.8]", f"[{spacing_mm}, {spacing_mm}]")
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(compile(recipe, "deploy.md", "exec"), names)
    return names


@pytest.mark.slow
def test_the_recipe_of_the_page_is_the_products_translation(
    single_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To rounding where nothing is resampled; elsewhere rounding moves a pixel of the contour now and then."""
    differences = {}
    changed = {}
    for spacing_mm, shape in ((1.1, (1, 230, 290)), (0.8, (1, 320, 400))):
        folder = tmp_path / str(spacing_mm)
        ct = write_phantom(folder, shape=shape, spacing_mm=(60.0, spacing_mm, spacing_mm))
        names = run_recipe(ct, single_file, spacing_mm)
        contour, expected = product_translation(ct, names["inputs"], monkeypatch)
        assert expected.std() > 20
        assert contour.sum() > 3000
        changed[spacing_mm] = np.count_nonzero(names["contour"] != contour)
        differences[spacing_mm] = np.abs(names["mr"] - expected)
        assert (folder / "mr.png").is_file()
    assert changed[1.1] == 0
    assert changed[0.8] < 5
    assert differences[1.1].max() < 0.05
    assert differences[0.8].mean() < 0.5


def product_translation(
    ct: Path, inputs: Mapping[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> tuple[np.ndarray, np.ndarray]:
    """Contour and gray levels of the one slice on the model's grid, by the bundle's components, from ``inputs``."""
    by_shape = {}
    for name in ("noise", "refiner_noise"):
        tensor = torch.from_numpy(inputs[name])
        by_shape[tuple(tensor.shape[1:])] = tensor

    def draw(stream: NoiseStream) -> Tensor:
        return by_shape[tuple(stream.shape)]

    monkeypatch.setattr(NoiseStream, "draw", draw)
    settings = {"batch_size": 1, "progress": False}
    plain = {"device": CPU, "acceleration": None, "amp": False}
    parser = read_config(config_files(overlays=["draft"]), {**settings, **plain})
    item = parser.get_parsed_content("preprocessing")({"image": str(ct)})
    inferer = parser.get_parsed_content("inferer")
    (result,) = inferer.translate([item["image"]], parser.get_parsed_content("network"))
    return np.asarray(result.contours[0]), np.asarray(result.gray_levels[0, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--single", "--steps", "0"], "steps to be a whole number from 1 to 1000, got 0"),
        (["--single", "--refinement-steps", "0"], "refinement_steps to be a whole number"),
        (["--single", "--format", "torchscript"], "--format onnx with --single, got torchscript"),
        (["--steps", "2", "--refinement-steps", "3"], "--single with --steps and --refinement"),
        (
            ["--single", "--settings", "eta=0.5"],
            "draws no noise between its steps, got solver=ddim",
        ),
        (["--single", "--settings", "solver=ddpm"], "got solver=ddpm, eta=0; leave out"),
        (["--single", "--settings", "num_inference_steps=3"], "expected steps in place of"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", str(tmp_path / "out"), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.onnx"))


def test_networks_that_see_more_or_less_are_refused(tmp_path: Path) -> None:
    settings = small_network(tmp_path, contrasts=[], in_channels=3)
    with pytest.raises(ValueError, match="of 2 channels, noisy image and contour, got 3; neighbor"):
        export_single_graph(tmp_path, overlays=["single"], **settings)
    settings = small_network(tmp_path, contrasts=[])
    with pytest.raises(ValueError, match="a cascade for refinement_steps, got a single network"):
        export_single_graph(tmp_path, overlays=["single"], refinement_steps=2, **settings)
    assert {path.name for path in tmp_path.iterdir()} == {"small.pt"}


def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small_network(tmp_path, contrasts=[])
    monkeypatch.setattr(
        "contourdiff.deploy.single_graph._largest_difference", lambda *_: float("nan")
    )
    with pytest.raises(ValueError, match=r"its network by at most 0\.05, got nan"):
        export_single_graph(tmp_path, overlays=["single"], **settings)
    assert {path.name for path in tmp_path.iterdir()} == {"small.pt"}
