# SPDX-License-Identifier: Apache-2.0
"""Laws of converted weights: the network is the one it was, key for key, or it is refused; the overlay translates."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from monai.bundle import ConfigParser
from safetensors.torch import load_file, save_file

from contourdiff import cli
from contourdiff.bundle import config_files, read_config, run_inference_config
from contourdiff.deploy.convert import (
    convert_checkpoint,
    scheduler_entry,
    unet2d_arguments,
    unet2d_state,
)
from contourdiff.networks import ContourUNet
from contourdiff.phantom import write_phantom
from contourdiff.weights import load_weights, sha256_of
from helpers.volumes import read_voxels

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers
PLAIN, ATTENTION, RESNET = "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"
TINY: dict[str, Any] = {
    "channels": [32, 64],
    "attention_levels": [False, True],
    "num_res_blocks": 1,
    "num_head_channels": 16,
    "norm_eps": 1e-5,
    "norm_num_groups": 16,
}


def unet(down: list[str], **given: Any) -> UNet2DModel:
    """A diffusers network whose levels are ``down``; all its parameters are drawn."""
    up = [kind.replace("Down", "Up") for kind in reversed(down)]
    options: dict[str, Any] = {
        "block_out_channels": (32, 64, 64)[: len(down)],
        "layers_per_block": 1,
    } | given
    torch.manual_seed(0)
    return drawn(UNet2DModel(32, 2, 1, down_block_types=down, up_block_types=up, **options))


def drawn(network: Any) -> Any:
    """The network with noise on every parameter: biases start at 0 and norms at 1, and would hide differences."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in network.parameters() if not p.is_meta):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def save(
    model: UNet2DModel, folder: Path, scheduler: dict[str, Any] | None = None, safe: bool = True
) -> Path:
    """A pipeline folder as the paper's code saves it."""
    model.save_pretrained(folder / "unet", safe_serialization=safe)
    if scheduler is not None:
        DDPMScheduler(**scheduler).save_pretrained(folder / "scheduler")
    return folder


def parser_of(overlay: Path) -> ConfigParser:
    return read_config(config_files(overlays=[str(overlay)]), {"device": "cpu", "amp": False})


@torch.no_grad()
def assert_same_outputs(network: torch.nn.Module, other: Any) -> None:
    for size in ((32, 32), (48, 64)):
        x = torch.randn(4, 2, *size, generator=torch.Generator().manual_seed(size[0]))
        timesteps = torch.tensor([0, 1, 500, 999])
        expected = other(x, timesteps)
        assert float(expected.std()) > 0.05
        torch.testing.assert_close(network(x, timesteps), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("down", "given"),
    [
        ([PLAIN, ATTENTION, PLAIN], {}),
        (
            [ATTENTION, ATTENTION],
            {"attention_head_dim": None, "norm_eps": 1e-3, "norm_num_groups": 16},
        ),
        ([PLAIN, PLAIN], {"attention_head_dim": 32, "layers_per_block": 2}),
        ([RESNET, ATTENTION, RESNET], {"downsample_type": "resnet", "upsample_type": "resnet"}),
    ],
)
@pytest.mark.parametrize("safe", [True, False])
def test_a_converted_unet_of_diffusers_paints_the_same(
    down: list[str], given: dict[str, Any], safe: bool, tmp_path: Path
) -> None:
    model = unet(down, **given)
    overlay = convert_checkpoint(
        save(model, tmp_path / "model", safe=safe), tmp_path / "out" / "model.pt"
    )
    network = parser_of(overlay).get_parsed_content("network")
    assert_same_outputs(network, lambda x, timesteps: model(x, timesteps).sample)
    direct = convert_checkpoint(tmp_path / "model" / "unet", tmp_path / "direct.safetensors")
    states = (
        torch.load(tmp_path / "out" / "model.pt"),
        load_file(direct.with_suffix(".safetensors")),
    )
    assert all(torch.equal(states[1].pop(key), value) for key, value in states[0].items())
    assert not states[1]


def test_attention_keys_of_old_diffusers_are_known(tmp_path: Path) -> None:
    model = unet([PLAIN, ATTENTION])
    folder = save(model, tmp_path / "model", safe=False) / "unet"
    old, file = {}, folder / "diffusion_pytorch_model.bin"
    for key, value in torch.load(file).items():
        for name, before in (
            ("to_q", "query"),
            ("to_k", "key"),
            ("to_v", "value"),
            ("to_out.0", "proj_attn"),
        ):
            key = key.replace(f".{name}.", f".{before}.")
        old[key] = value
    assert "mid_block.attentions.0.query.weight" in old
    torch.save(old, file)
    network = parser_of(convert_checkpoint(folder, tmp_path / "new.pt")).get_parsed_content(
        "network"
    )
    assert_same_outputs(network, lambda x, timesteps: model(x, timesteps).sample)


def test_the_network_of_the_paper_maps_key_for_key() -> None:
    with torch.device("meta"):
        down = [PLAIN] * 4 + [ATTENTION, PLAIN]
        model = unet(down, block_out_channels=(128, 128, 256, 256, 512, 512), layers_per_block=2)
        arguments = unet2d_arguments(json.loads(model.to_json_string()))
        network = ContourUNet(**arguments)
    ours, theirs = network.state_dict(), unet2d_state(model.state_dict())
    assert len(ours) == 450
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }
    assert sum(value.numel() for value in ours.values()) == pytest.approx(113.7e6, rel=1e-3)
    paper = {
        "channels": [128, 128, 256, 256, 512, 512],
        "attention_levels": [False] * 4 + [True, False],
        "num_res_blocks": 2,
        "num_head_channels": 8,
        "norm_eps": 1e-5,
        "in_channels": 2,
        "patch_size": 1,
    }
    assert {name: arguments[name] for name in paper} == paper


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "sigmoid"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_converted_schedule_is_that_of_the_training(
    beta_schedule: str, prediction_type: str, tmp_path: Path
) -> None:
    given = {
        "beta_schedule": beta_schedule,
        "prediction_type": prediction_type,
        "num_train_timesteps": 300,
        "beta_start": 2e-4,
        "beta_end": 0.03,
    }
    source = save(unet([PLAIN, PLAIN]), tmp_path / "model", scheduler=given)
    for path in (source, source / "unet"):
        overlay = convert_checkpoint(path, tmp_path / f"{path.name}.pt")
        scheduler = parser_of(overlay).get_parsed_content("scheduler")
        assert scheduler.prediction_type == prediction_type
        torch.testing.assert_close(scheduler.alphas_cumprod, DDPMScheduler(**given).alphas_cumprod)


def test_a_unet_without_a_schedule_gets_the_papers(tmp_path: Path) -> None:
    overlay = convert_checkpoint(
        save(unet([PLAIN, PLAIN]), tmp_path / "model"), tmp_path / "new.pt"
    )
    assert json.loads(overlay.read_text())["scheduler"] == scheduler_entry(DDPMScheduler().config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"down_block_types": [PLAIN, "AttnSkipDownBlock2D"]},
            "down_block_types=.*AttnSkipDownBlock2D",
        ),
        (
            {"up_block_types": ["UpBlock2D", "UpBlock2D"]},
            r"up_block_types=\['UpBlock2D', 'UpBlock2D'\]",
        ),
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ({"flip_sin_to_cos": False, "freq_shift": 1}, "freq_shift=1, flip_sin_to_cos=False"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ({"num_class_embeds": 3}, "num_class_embeds=3"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift='scale_shift'"),
        ({"downsample_padding": 0}, "downsample_padding=0"),
        ({"mid_block_type": None}, "mid_block_type=None"),
        ({"novel": 1}, "novel=1"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name='UNet2DConditionModel'"),
        ({"in_channels": 3}, "expected in_channels 2 .*got 3 and 1"),
        ({"block_out_channels": [32, 32]}, "of another network: .* of another shape"),
        (
            {"downsample_type": "resnet"},
            r"of another network: .*keys missing \['down_blocks.0.downsampler",
        ),
    ],
)
def test_a_unet_that_monai_does_not_have_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = save(unet([ATTENTION, ATTENTION]), tmp_path / "model") / "unet"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(folder, tmp_path / "out" / "new.pt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_schedule": "squaredcos_cap_v2"}, "'beta_schedule': 'squaredcos_cap_v2'"),
        ({"prediction_type": "sample"}, "'prediction_type': 'sample'"),
        ({"rescale_betas_zero_snr": True}, "'rescale_betas_zero_snr': True"),
        ({"trained_betas": [0.1, 0.2]}, "'trained_betas'"),
    ],
)
def test_an_unsupported_noise_schedule_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler_entry(dict(DDPMScheduler().config) | changes)


def test_keys_that_do_not_map_are_refused(tmp_path: Path) -> None:
    folder = save(unet([PLAIN, PLAIN]), tmp_path / "model") / "unet"
    file = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file({**state, "strange.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"0 keys missing \[\], 1 unknown \['strange.weight'\]"):
        convert_checkpoint(folder, tmp_path / "new.pt")
    save_file({key: value for key, value in state.items() if key != "conv_out.bias"}, file)
    with pytest.raises(ValueError, match=r"1 keys missing \['out.2.conv.bias'\]"):
        convert_checkpoint(folder, tmp_path / "new.pt")
    save_file({**state, "conv_out.bias": torch.full((1,), 1e6)}, file)
    with pytest.raises(ValueError, match=r"expected finite weights .*\['out.2.conv.bias'\]"):
        convert_checkpoint(folder, tmp_path / "new.pt", half=True)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected diffusion_pytorch_model.safetensors or"):
        convert_checkpoint(folder, tmp_path / "new.pt")
    assert not (tmp_path / "new.pt").exists()


def old_state(network: ContourUNet) -> dict[str, torch.Tensor]:
    """The state dict as monai-generative 0.2.3 names it, with its output layers that are never applied."""
    old = {}
    for key, value in network.state_dict().items():
        old[key.replace(".attn.", ".").replace(".postconv.", ".conv.")] = value
        if ".attn.to_q." in key:
            old[key.replace(".attn.to_q.", ".proj_attn.")] = torch.randn_like(value)
    return old


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def generative(tmp_path: Path) -> tuple[Path, Path, ContourUNet]:
    """A state dict, the arguments of its network, and the network."""
    network = drawn(ContourUNet(**TINY, include_fc=False))
    torch.save(old_state(network), tmp_path / "old.pt")
    arguments = {"spatial_dims": 2, **TINY, "num_channels": TINY["channels"]}
    arguments.pop("channels")
    return tmp_path / "old.pt", write_json(tmp_path / "net.json", arguments), network


def test_renamed_keys_of_monai_generative_are_converted(
    generative: tuple[Path, Path, ContourUNet], tmp_path: Path
) -> None:
    source, network_def, network = generative
    converted = parser_of(convert_checkpoint(source, tmp_path / "new.pt", network_def=network_def))
    assert_same_outputs(converted.get_parsed_content("network"), network)


@pytest.fixture
def nets(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Networks of monai-generative, from a folder of its own: its wheel also has a package ``tests``."""
    monkeypatch.setattr(sys, "path", [*sys.path, os.environ.get("MONAI_GENERATIVE", "")])
    reason = (
        "expected monai-generative 0.2.3 in the folder MONAI_GENERATIVE, as .ci/run installs it"
    )
    return pytest.importorskip("generative.networks.nets", reason=reason, exc_type=ImportError)


def test_a_network_of_monai_generative_paints_the_same(nets: Any, tmp_path: Path) -> None:
    arguments = {"spatial_dims": 2, "in_channels": 2, "out_channels": 1, **TINY}
    arguments["num_channels"] = arguments.pop("channels")
    for updown in (False, True):
        arguments["resblock_updown"] = updown
        torch.manual_seed(0)
        network = drawn(nets.DiffusionModelUNet(**arguments))
        source = tmp_path / f"old{updown}.pt"
        torch.save(network.state_dict(), source)
        entries = {"network_def": arguments, "scheduler": {"_target_": "x"}}
        network_def = write_json(tmp_path / "net.json", entries)
        output = tmp_path / f"new{updown}.safetensors"
        overlay = convert_checkpoint(source, output, network_def=network_def)
        assert json.loads(overlay.read_text())["scheduler"] == {"_target_": "x"}
        assert_same_outputs(parser_of(overlay).get_parsed_content("network"), network)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_res_blocks": 2}, r"of another network: .*keys missing \['down_blocks.0.resnets.1"),
        ({"num_channels": [32, 32]}, r"of another network: .* of another shape \['"),
        (
            {"attention_levels": [False, False]},
            r"of another network: 0 keys .* unknown \['down_blocks.1.attentions",
        ),
        (
            {"attention_levels": [True, True]},
            r"of another network: .*keys missing \['down_blocks.0.attentions",
        ),
        ({"num_class_embeds": 2}, "without classes and cross-attention, got num_class_embeds=2"),
        ({"with_conditioning": True}, "without classes and cross-attention"),
        ({"in_channels": 1}, "expected in_channels 2 .*got 1 and 1"),
        ({"spatial_dims": 3}, "spatial_dims must be 2, got 3"),
        ({"width": 3}, "expected arguments of ContourUNet, got .*'width'"),
    ],
)
def test_another_network_def_is_refused(
    changes: dict[str, Any],
    message: str,
    generative: tuple[Path, Path, ContourUNet],
    tmp_path: Path,
) -> None:
    source, network_def, _ = generative
    write_json(network_def, json.loads(network_def.read_text()) | changes)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "new.pt", network_def=network_def)


def test_a_state_dict_requires_its_network_def(
    generative: tuple[Path, Path, ContourUNet], tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError,
        match=r"expected the network_def of the state dict .*pass --network_def FILE.json",
    ):
        convert_checkpoint(generative[0], tmp_path / "new.pt")
    state = torch.load(generative[0])
    torch.save(
        {key: value for key, value in state.items() if key != "conv_in.conv.bias"}, generative[0]
    )
    message = r"of another network: 1 keys missing \['conv_in.conv.bias'\], 0 unknown"
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(generative[0], tmp_path / "new.pt", network_def=generative[1])


def test_weights_of_monai_itself_change_their_format(tmp_path: Path) -> None:
    network = drawn(ContourUNet(**TINY))
    torch.save(network.state_dict(), tmp_path / "own.pt")
    network_def = write_json(tmp_path / "net.json", {"network_def": TINY})
    convert_checkpoint(
        tmp_path / "own.pt", tmp_path / "half.safetensors", network_def=network_def, half=True
    )
    convert_checkpoint(tmp_path / "half.safetensors", tmp_path / "back.pt", network_def=network_def)
    for name, dtype in (("half.safetensors", torch.float16), ("back.pt", torch.float32)):
        state = load_file(tmp_path / name) if name[0] == "h" else torch.load(tmp_path / name)
        assert {value.dtype for value in state.values()} == {dtype}
        loaded = load_weights(ContourUNet(**TINY), tmp_path / name).state_dict()
        assert all(
            torch.equal(loaded[key], value.half().float())
            for key, value in network.state_dict().items()
        )


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(ContourUNet(**TINY).state_dict(), path)
    content = path.read_bytes()
    for part in (0.0, 0.001, 0.5, 0.999):
        path.write_bytes(content[: int(part * len(content))])
        with pytest.raises(
            ValueError, match=r"to be an undamaged file of tensors .* copy or train it again"
        ):
            load_weights(ContourUNet(**TINY), path)


def test_converted_weights_are_new_files_of_a_known_kind(
    generative: tuple[Path, Path, ContourUNet], tmp_path: Path
) -> None:
    source, network_def, _ = generative
    for output, message in (
        (source, "expected new files"),
        (tmp_path / "net.pt", "net.json"),
        (tmp_path / "a", "pt or"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(source, output, network_def=network_def)
    with pytest.raises(
        ValueError, match=r"expected spacing_mm to be a number from 0\.01 to 100, got 0"
    ):
        convert_checkpoint(source, tmp_path / "new.pt", network_def=network_def, spacing_mm=0)
    with pytest.raises(ValueError, match="expected network_def for a state dict alone"):
        convert_checkpoint(tmp_path, tmp_path / "new.pt", network_def=network_def)


def test_weights_inside_a_bundle_are_named_relative_to_it(
    generative: tuple[Path, Path, ContourUNet], tmp_path: Path
) -> None:
    source, network_def, _ = generative
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "inference.json").write_text("{}")
    for folder, path in (
        ("bundle/models", "$@bundle_root + '/models/new.pt'"),
        ("out", str(tmp_path / "out/new.pt")),
    ):
        overlay = convert_checkpoint(source, tmp_path / folder / "new.pt", network_def=network_def)
        assert json.loads(overlay.read_text())["ckpt_path"] == path


def test_missing_safetensors_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for run in (
        lambda: convert_checkpoint(tmp_path, tmp_path / "new.safetensors"),
        lambda: load_weights(torch.nn.Linear(1, 1), write_json(tmp_path / "a.safetensors", {})),
    ):
        with pytest.raises(
            ImportError, match=r"requires safetensors; pip install 'contourdiff\[convert\]'"
        ):
            run()


@pytest.mark.slow
@pytest.mark.parametrize("paper_contour", [False, True])
def test_a_converted_network_translates_the_phantom(paper_contour: bool, tmp_path: Path) -> None:
    if paper_contour:
        pytest.importorskip("cv2", reason="OpenCV is not installed")
    source = str(
        save(unet([PLAIN, ATTENTION]), tmp_path / "model", scheduler={"prediction_type": "epsilon"})
    )
    write_phantom(tmp_path / "ct", shape=(12, 62, 70), spacing_mm=(16, 4, 4))
    options = ["--spacing_mm", "4", *(["--paper_contour"] if paper_contour else [])]
    for suffix in ("pt", "safetensors"):
        cli.main(["convert", source, str(tmp_path / suffix / f"model.{suffix}"), *options])
        overlays, short = (
            (str(tmp_path / suffix / "model.json"), "fast"),
            {"num_inference_steps": 2},
        )
        run_inference_config(
            tmp_path / "ct", tmp_path / suffix, overlays=overlays, logging_file=False, **short
        )
    first, second = (
        read_voxels(tmp_path / suffix / "phantom_mr.nii.gz") for suffix in ("pt", "safetensors")
    )
    assert first.std() > 1
    assert (first == second).all()
    record = json.loads((tmp_path / "pt" / "phantom_mr.json").read_text())
    assert sha256_of(tmp_path / "pt" / "model.pt") in json.dumps(record)
    assert record["settings"]["spacing_mm"] == 4
    assert record["settings"]["scheduler"]["prediction_type"] == "epsilon"
    contour = record["settings"]["contour"]
    values = ("OpenCVContourd", 80, 150) if paper_contour else ("Contourd", 60, 112)
    assert (
        contour["_target_"].split(".")[-1],
        contour["low_threshold"],
        contour["high_threshold"],
    ) == values
