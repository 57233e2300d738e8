# SPDX-License-Identifier: Apache-2.0
"""Exported networks compute what the networks compute, at any size and timestep, and the bundle runs from them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import load_net_with_metadata
from torch import Tensor

from contourdiff import cli
from contourdiff.bundle import config_files, read_config, run_inference_config
from contourdiff.deploy.network_export import export_networks
from contourdiff.deploy.onnx_network import OnnxNetwork
from contourdiff.phantom import write_phantom
from helpers.volumes import read_voxels

CPU = "$torch.device('cpu')"
PARTS = {"model": ("coarse_network", 5), "refiner": ("refiner", 3)}
QUICK = {
    "num_inference_steps": 3,
    "num_refinement_steps": 2,
    "candidates": 1,
    "max_rounds": 1,
    "contrast": "t2",
}


@pytest.fixture(scope="module")
def onnx_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[onnx]'")
    folder = tmp_path_factory.mktemp("onnx")
    cli.main(["export", str(folder)])
    return folder


def assert_same(name: str, exported: Callable[..., Tensor], tolerance: float) -> None:
    """At two sizes and three timesteps that the export does not check, and for either contrast."""
    entry, channels = PARTS[name]
    network = read_config(config_files(), {"device": CPU}).get_parsed_content(entry)
    generator = torch.Generator().manual_seed(7)
    for batch, height, width in ((2, 24, 80), (1, 104, 64)):
        x = torch.randn(batch, channels, height, width, generator=generator)
        outputs = []
        for step in (1, 250, 998):
            timesteps = torch.full((batch,), step)
            for label in range(max(1, len(network.contrasts))):
                labels = (torch.full((batch,), label),) if network.contrasts else ()
                named = {"class_labels": labels[0]} if labels else {}
                with torch.no_grad():
                    outputs.append(exported(x, timesteps, *labels))
                    expected = network(x, timesteps, **named)
                torch.testing.assert_close(outputs[-1], expected, rtol=0, atol=tolerance)
        differences = [(outputs[0] - other).abs().max() for other in outputs[1:]]
        assert min(differences) > 0.01  # neither timesteps nor labels are frozen


@pytest.mark.slow
def test_torchscript_is_exact(tmp_path: Path) -> None:
    assert set(export_networks(tmp_path, "torchscript").values()) == {0.0}
    for name, contrasts in (("model", ["t1", "t2", "t2_space"]), ("refiner", [])):
        traced, facts, _ = load_net_with_metadata(str(tmp_path / f"{name}.ts"))
        assert (facts["size_divisor"], facts["contrasts"]) == (8, contrasts)
        assert_same(name, traced, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_onnx_differs_by_rounding(name: str, onnx_dir: Path) -> None:
    assert_same(name, OnnxNetwork(onnx_dir / f"{name}.onnx"), 2e-5)


@pytest.mark.slow
def test_onnx_paints_the_contrast_it_is_built_with(onnx_dir: Path) -> None:
    x, timesteps = torch.randn(2, 5, 32, 24), torch.tensor([3, 700])
    first, second = (OnnxNetwork(onnx_dir / "model.onnx", contrast) for contrast in (None, "t2"))
    torch.testing.assert_close(
        second(x, timesteps), first(x, timesteps, torch.tensor([1, 1])), rtol=0, atol=0
    )
    assert (second(x, timesteps) - first(x, timesteps)).abs().max() > 0.01
    assert second.size_divisor == 8
    assert second._session.get_session_options().intra_op_num_threads == torch.get_num_threads()
    with pytest.raises(
        ValueError, match=r"contrast must be one of \['t1', 't2', 't2_space'\], got 'flair'"
    ):
        OnnxNetwork(onnx_dir / "model.onnx", "flair")


@pytest.mark.slow
@pytest.mark.parametrize("acceleration", [None, "lean"])
def test_the_bundle_translates_from_onnx_files(
    acceleration: str | None, onnx_dir: Path, tmp_path: Path
) -> None:
    write_phantom(tmp_path / "ct", shape=(3, 112, 128), spacing_mm=(60.0, 2.2, 2.2))
    files = {
        "ckpt_path": str(onnx_dir / "model.onnx"),
        "refiner_path": str(onnx_dir / "refiner.onnx"),
    }
    settings = {**QUICK, "acceleration": acceleration, "logging_file": False}
    eager = run_inference_config(tmp_path / "ct", tmp_path / "eager", device=CPU, **settings)
    run = run_inference_config(
        tmp_path / "ct", tmp_path / "onnx", overlays=["onnx"], **files, **settings
    )
    mr, expected = (read_voxels(folder / "phantom_mr.nii.gz") for folder in (run, eager))
    assert expected.std() > 10
    np.testing.assert_allclose(mr, expected, atol=0.05)
    weights = json.loads((run / "phantom_mr.json").read_text())["weights"]
    assert (weights["file"], weights["refiner"]["file"]) == ("model.onnx", "refiner.onnx")


def test_files_that_cannot_be_run_are_refused(onnx_dir: Path, tmp_path: Path) -> None:
    import onnx

    with pytest.raises(
        FileNotFoundError, match=r"expected an ONNX file at .*absent.onnx, found none"
    ):
        OnnxNetwork(tmp_path / "absent.onnx")
    (tmp_path / "damaged.onnx").write_bytes((onnx_dir / "model.onnx").read_bytes()[:10_000])
    with pytest.raises(ValueError, match=r"damaged.onnx to be an ONNX file; reading it failed"):
        OnnxNetwork(tmp_path / "damaged.onnx")
    model = onnx.load(onnx_dir / "refiner.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="to name its size_divisor and contrasts"):
        OnnxNetwork(tmp_path / "foreign.onnx")
    files = {
        "ckpt_path": str(onnx_dir / "model.onnx"),
        "refiner_path": str(onnx_dir / "refiner.onnx"),
    }
    with pytest.raises(
        ValueError, match=r"got \['OnnxNetwork', 'OnnxNetwork'\]; leave out the overlay onnx"
    ):
        export_networks(tmp_path, overlays=["onnx"], **files)


def test_a_file_that_differs_and_bad_input_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ValueError, match=r"file_format must be one of \['torchscript', 'onnx'\], got 'tensorrt'"
    ):
        export_networks(tmp_path, "tensorrt")
    with pytest.raises(FileNotFoundError, match=r"expected weights at nowhere.pt"):
        export_networks(tmp_path, "torchscript", ckpt_path="nowhere.pt")
    monkeypatch.setattr(
        "contourdiff.deploy.network_export.largest_difference", lambda *_: float("nan")
    )
    with pytest.raises(
        ValueError, match=r"expected model.ts to differ from its network by at most 0.0, got nan"
    ):
        export_networks(tmp_path, "torchscript")
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        SystemExit,
        match=r"error: ONNX files are written with onnx; pip install 'contourdiff\[onnx\]'",
    ):
        cli.main(["export", str(tmp_path / "out")])
    write_phantom(tmp_path / "ct", shape=(1, 40, 40))
    with pytest.raises(SystemExit, match=r"error: ONNX files are run by onnxruntime; pip install"):
        cli.main(["translate", str(tmp_path / "ct"), str(tmp_path / "mr"), "--overlays", "onnx"])
    assert not (tmp_path / "mr").exists()
