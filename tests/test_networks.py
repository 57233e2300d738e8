# SPDX-License-Identifier: Apache-2.0
"""Laws of the network, MONAI's with other edges, and of loading weights: tensors only, strictly, or a clear refusal."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

from contourdiff.networks import ContourUNet
from contourdiff.weights import load_weights, sha256_of

TINY: dict[str, Any] = {
    "channels": (32, 32),
    "norm_num_groups": 32,
    "attention_levels": (False, False),
    "num_res_blocks": 1,
    "num_head_channels": 32,
}


class Touch:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def tiny(seed: int = 0, **kwargs: Any) -> ContourUNet:
    """Tiny network with random weights everywhere: MONAI's last layers start at zero and would hide differences."""
    return randomized(ContourUNet(**{**TINY, **kwargs}), seed)


def randomized(network: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def monai_twin(patch_size: int = 1) -> DiffusionModelUNet:
    return DiffusionModelUNet(
        spatial_dims=2, in_channels=2 * patch_size**2, out_channels=patch_size**2, **TINY
    ).eval()


def inputs(batch: int = 2, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(batch, 2, size, size, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(batch) * 400 + 7


@pytest.fixture(scope="module")
def network() -> ContourUNet:
    return tiny()


@pytest.fixture
def weights(network: ContourUNet, tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("patch_size", [1, 2])
def test_state_dict_is_that_of_monai(patch_size: int) -> None:
    ours, theirs = tiny(patch_size=patch_size).state_dict(), monai_twin(patch_size).state_dict()
    assert list(ours) == list(theirs)
    assert [value.shape for value in ours.values()] == [value.shape for value in theirs.values()]


@torch.no_grad()
def test_without_patches_the_network_is_that_of_monai(network: ContourUNet) -> None:
    twin = monai_twin()
    twin.load_state_dict(network.state_dict())
    x, timesteps = inputs()
    out = network(x, timesteps)
    assert float(out.std()) > 0
    torch.testing.assert_close(out, twin(x, timesteps), rtol=0, atol=0)


@torch.no_grad()
def test_patches_fold_and_unfold_around_the_network_of_monai() -> None:
    network, twin = tiny(patch_size=2), monai_twin(2)
    twin.load_state_dict(network.state_dict())
    x, timesteps = inputs()
    out, inner = network(x, timesteps), twin(torch.nn.functional.pixel_unshuffle(x, 2), timesteps)
    for row in (0, 1):
        for column in (0, 1):
            torch.testing.assert_close(
                out[:, 0, row::2, column::2], inner[:, 2 * row + column], rtol=0, atol=0
            )


@torch.no_grad()
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_output_lies_on_the_grid_of_the_input(patch_size: int) -> None:
    network = tiny(patch_size=patch_size)
    divisor = network.size_divisor
    assert divisor == 2 * patch_size
    for height, width in ((16, 16), (8 + divisor * 2, 24)):
        assert network(torch.zeros(3, 2, height, width), torch.zeros(3).long()).shape == (
            3,
            1,
            height,
            width,
        )


@torch.no_grad()
def test_timesteps_left_out_are_zeros(network: ContourUNet) -> None:
    x, timesteps = inputs()
    torch.testing.assert_close(
        network(x), network(x, torch.zeros(2, dtype=torch.long)), rtol=0, atol=0
    )
    assert (network(x) != network(x, timesteps)).any()


@torch.no_grad()
def test_output_depends_on_image_and_contour(network: ContourUNet) -> None:
    x, timesteps = inputs()
    for channel in (0, 1):
        other = x.clone()
        other[:, channel] += 1
        assert (network(other, timesteps) != network(x, timesteps)).any()


def test_impossible_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="spatial_dims must be 2, got 3"):
        ContourUNet(spatial_dims=3, **TINY)
    with pytest.raises(
        ValueError, match="expected patch_size to be a whole number from 1 to 1024, got 0"
    ):
        ContourUNet(patch_size=0, **TINY)


def test_weights_make_the_round_trip(network: ContourUNet, weights: Path) -> None:
    other = tiny(seed=9).train()
    loaded = load_weights(other, weights)
    assert loaded is other
    assert not loaded.training
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    x, timesteps = inputs()
    with torch.no_grad():
        torch.testing.assert_close(loaded(x, timesteps), network(x, timesteps), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_cast_to_the_network(
    network: ContourUNet, tmp_path: Path, dtype: torch.dtype
) -> None:
    half = {key: value.to(dtype) for key, value in network.state_dict().items()}
    torch.save(half, tmp_path / "half.pt")
    loaded = load_weights(tiny(seed=9), tmp_path / "half.pt")
    for key, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, half[key].float())


def test_absent_weights_are_refused(network: ContourUNet, tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"expected weights at .*, found none; pass --ckpt_path"
        ):
            load_weights(network, path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_weights_are_refused(
    network: ContourUNet, tmp_path: Path, part: float, zipped: bool
) -> None:
    path = tmp_path / "model.pt"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(
        ValueError, match=r"to be an undamaged file of tensors .* copy or train it again"
    ):
        load_weights(network, path)


@pytest.mark.parametrize(
    "content",
    [b"\x00" * 100, b"hello, I am text", b"PK\x03\x04 no archive", b"\x80\x02}q\x00.", b"\x80"],
)
def test_files_of_another_kind_are_refused(
    network: ContourUNet, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"undamaged file of tensors|state dict of tensors"):
        load_weights(network, path)


@pytest.mark.parametrize("raw", [True, False])
def test_weights_that_would_run_code_are_refused_and_run_nothing(
    network: ContourUNet, tmp_path: Path, raw: bool
) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    evil = {**network.state_dict(), "extra": Touch(trace)}
    if raw:
        path.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        torch.save(evil, path)
    with pytest.raises(ValueError, match=r"to be an undamaged file of tensors"):
        load_weights(network, path)
    assert not trace.exists()
    if raw:
        pickle.loads(path.read_bytes())
        assert trace.exists()  # the trap itself works


def test_weights_of_another_network_are_refused(network: ContourUNet, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = network.state_dict()
    first = next(iter(state))
    cases = {
        "1 keys missing .*, 0 unknown .*, 0 of another shape": {
            k: v for k, v in state.items() if k != first
        },
        "0 keys missing .*, 1 unknown .*strange.*, 0 of another shape": {
            **state,
            "strange": torch.zeros(1),
        },
        "0 keys missing .*, 0 unknown .*, 1 of another shape": {**state, first: torch.zeros(1)},
    }
    for text, other in cases.items():
        torch.save(other, path)
        with pytest.raises(
            ValueError, match=f"are of another network: {text}.*use the network_def"
        ):
            load_weights(network, path)
    torch.save(tiny(patch_size=2).state_dict(), path)
    with pytest.raises(ValueError, match="are of another network: 0 keys missing"):
        load_weights(network, path)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], torch.zeros(2), {"model": {"a": torch.zeros(1)}}, {"a": 1}, 5]
)
def test_what_is_no_state_dict_is_refused(
    network: ContourUNet, tmp_path: Path, content: Any
) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(
        ValueError, match=r"expected a state dict of tensors in .*; save network\.state_dict\(\)"
    ):
        load_weights(network, tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_weights_load_or_are_refused_clearly(tmp_path: Path) -> None:
    path, rng = tmp_path / "model.pt", random.Random(0)
    small = torch.nn.Linear(4, 4)
    for zipped in (True, False):
        torch.save(small.state_dict(), path, _use_new_zipfile_serialization=zipped)
        content = path.read_bytes()
        for _ in range(200):
            damaged = bytearray(content)
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path.write_bytes(damaged)
            with contextlib.suppress(ValueError):  # anything else fails the test
                load_weights(small, path)


def test_sha256_is_that_of_the_file(weights: Path) -> None:
    assert sha256_of(weights) == hashlib.sha256(weights.read_bytes()).hexdigest()
