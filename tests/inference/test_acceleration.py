# SPDX-License-Identifier: Apache-2.0
"""Speed changes no result: fewer multiplications, a converted copy that is never stale, and a retained heap."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.networks.blocks import UpSample
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from contourdiff.inference import acceleration
from contourdiff.inference.acceleration import (
    MIN_CHANNELS,
    Accelerator,
    RowPairConv2d,
    UpsampledConv2d,
    with_fewer_multiplications,
)
from contourdiff.inference.denoiser import Denoiser
from contourdiff.networks import ContourUNet
from contourdiff.sampling import Sampler
from helpers.inferers import SCHEDULER, as_case, make_inferer, random_contours, translate_contours
from helpers.networks import make_attention_network, make_seeded


def small_unet(channels: int = MIN_CHANNELS) -> ContourUNet:
    torch.manual_seed(0)
    network = ContourUNet(
        patch_size=2,
        channels=[32, channels],
        attention_levels=[False, True],
        num_res_blocks=1,
        num_head_channels=16,
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network.eval()


def upsampling(factor: float = 2.0, mode: str = "nearest", kernel: int = 3) -> UpSample:
    convolution = nn.Conv2d(5, 5, kernel, padding=kernel // 2)
    return UpSample(2, 5, 5, mode="nontrainable", interp_mode=mode, scale_factor=factor, align_corners=None,
                    post_conv=convolution)  # fmt: skip


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 5), (2, 1), (33, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_pairs_of_rows_are_the_convolution(size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 10, 3, padding=1, bias=bias).double()
    x = torch.randn(3, 6, *size, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(
            RowPairConv2d(convolution)(x), convolution(x), atol=1e-12, rtol=0
        )


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 1)])
def test_upsampling_is_a_transposed_convolution(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 10, 3, padding=1).double()
    x = torch.randn(3, 6, *size, dtype=torch.float64)
    with torch.inference_mode():
        expected = convolution(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        torch.testing.assert_close(UpsampledConv2d(convolution)(x), expected, atol=1e-12, rtol=0)


def test_a_network_gives_the_same_with_a_quarter_fewer_operations() -> None:
    network = small_unet()
    x, t = torch.randn(2, 2, 48, 40), torch.tensor([3, 700])
    before = copy.deepcopy(network.state_dict())
    faster = with_fewer_multiplications(network)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as plain:
            expected = network(x, t)
        with FlopCounterMode(display=False) as fewer:
            got = faster(x, t)
    torch.testing.assert_close(got, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert fewer.get_total_flops() < 0.75 * plain.get_total_flops()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(
        isinstance(module, RowPairConv2d | UpsampledConv2d) for module in network.modules()
    )


def test_all_other_weights_are_shared() -> None:
    network = small_unet()
    replaced = sum(isinstance(module, RowPairConv2d | UpsampledConv2d)
                   for module in with_fewer_multiplications(network).modules())  # fmt: skip
    own, theirs = (
        {id(parameter) for parameter in each.parameters()}
        for each in (network, with_fewer_multiplications(network))
    )
    assert theirs < own
    assert len(own - theirs) == replaced > 0  # a weight each; biases are shared


def test_narrow_convolutions_stay() -> None:
    faster = with_fewer_multiplications(small_unet(channels=32))
    assert not any(isinstance(module, RowPairConv2d) for module in faster.modules())
    assert sum(isinstance(module, UpsampledConv2d) for module in faster.modules()) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"stride": 2, "padding": 1},
        {"padding": 0},
        {"padding": 1, "groups": 2},
        {"padding": 2, "dilation": 2},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": 1, "dtype": torch.bfloat16},
    ],
)
def test_other_convolutions_stay(other: dict) -> None:
    convolution = nn.Conv2d(MIN_CHANNELS, MIN_CHANNELS, 3, **other)
    assert type(with_fewer_multiplications(nn.Sequential(convolution))[0]) is nn.Conv2d  # type: ignore[index]
    parametrized = nn.utils.parametrizations.weight_norm(
        nn.Conv2d(MIN_CHANNELS, MIN_CHANNELS, 3, padding=1)
    )
    assert not isinstance(with_fewer_multiplications(parametrized), RowPairConv2d)


@pytest.mark.parametrize("other", [{"factor": 3.0}, {"mode": "bilinear"}, {"kernel": 1}])
def test_other_upsampling_stays(other: dict) -> None:
    assert isinstance(with_fewer_multiplications(upsampling()), UpsampledConv2d)
    assert isinstance(with_fewer_multiplications(upsampling(**other)), UpSample)


def test_an_item_does_not_depend_on_its_batch() -> None:
    faster = with_fewer_multiplications(small_unet())
    x, t = torch.randn(4, 2, 32, 32), torch.full((4,), 10)
    order = [2, 0, 3, 1]
    with torch.inference_mode():
        assert torch.equal(faster(x, t)[order], faster(x[order], t))


SAMPLER = Sampler(SCHEDULER, num_inference_steps=2)
PLACES = [("a", 1, 0, number) for number in range(4)]


def denoised(
    network: torch.nn.Module, given: torch.Tensor, acceleration: str | None, amp: bool = False
) -> torch.Tensor:
    return Denoiser(network, SAMPLER, batch_size=4, amp=amp, accelerator=Accelerator(acceleration))(
        given, PLACES
    )


def choices_of(**settings: object) -> list[tuple[int, int, int]]:
    (result,) = make_inferer(**settings).translate(
        as_case([random_contours()], ["a"]), make_seeded()
    )
    return [(c.slice_index, c.round, c.candidate) for c in result.choices if c is not None]


def test_acceleration_changes_no_choice() -> None:
    assert choices_of(acceleration="lean") == choices_of()


@pytest.mark.parametrize(("amp", "expected"), [(False, 1), (True, 0)])
def test_fewer_multiplications_are_for_float32(
    amp: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 sums of rows would lose digits."""
    converted: list[torch.nn.Module] = []
    convert = acceleration.with_fewer_multiplications
    monkeypatch.setattr(
        acceleration,
        "with_fewer_multiplications",
        lambda network: converted.append(network) or convert(network),
    )
    given = (torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(1)) > 0.8).float()
    lean = denoised(make_attention_network(), given, "lean", amp)
    plain = denoised(make_attention_network(), given, None, amp)
    assert len(converted) == expected
    assert (lean - plain).abs().mean() < (1 if amp else 1e-3)


def test_lean_is_the_same_alone_and_in_a_batch() -> None:
    volumes = [random_contours(number) for number in range(2)]
    together = make_inferer(acceleration="lean")(as_case(volumes, ["a", "b"]), make_seeded())
    for position, name in enumerate("ab"):
        alone = translate_contours(volumes[position], name, acceleration="lean")
        assert torch.equal(alone, torch.as_tensor(together[position, 0]))


@pytest.mark.slow
def test_new_weights_are_seen_by_the_next_volume() -> None:
    """A translation inside a training never runs with the weights that were converted first."""
    translation, network = make_inferer(acceleration="lean"), make_wide()
    before = torch.as_tensor(translation(as_case([random_contours()], ["a"]), network))
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(-1)
    after = torch.as_tensor(translation(as_case([random_contours()], ["a"]), network))
    assert not torch.allclose(before, after, atol=1)


def make_wide() -> ContourUNet:
    """A network with convolutions that are replaced."""
    torch.manual_seed(0)
    network = ContourUNet(patch_size=2, channels=[128], attention_levels=[False], num_res_blocks=1)
    torch.nn.init.normal_(network.out[2].conv.weight, std=0.05)
    return network.eval()


def test_a_network_moved_to_another_type_is_converted_anew() -> None:
    network, accelerate = make_wide(), Accelerator("lean")
    inputs, timesteps = torch.rand(1, 2, 16, 16), torch.zeros(1, dtype=torch.long)
    first = accelerate(network, inputs.device)
    assert accelerate(network, inputs.device) is first
    network.to(torch.float64)
    network.to(torch.float32)
    assert accelerate(network, inputs.device) is not first
    network.to(torch.float64)
    converted = accelerate(network, inputs.device)
    torch.testing.assert_close(
        converted(inputs.double(), timesteps), network(inputs.double(), timesteps)
    )


def test_a_network_is_converted_once_for_many_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[object] = []
    convert = acceleration.with_fewer_multiplications
    monkeypatch.setattr(
        acceleration,
        "with_fewer_multiplications",
        lambda network: converted.append(network) or convert(network),
    )
    translation, network = make_inferer(acceleration="lean"), make_seeded()
    for number in range(3):
        translation(as_case([random_contours(number)], [str(number)]), network)
    assert len(converted) == 1
    translation(as_case([random_contours()], ["a"]), make_seeded())
    assert len(converted) == 2


def in_a_process(code: str) -> list[str]:
    """Lines that a program prints in a process of its own, for the heap's settings are the process's."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_retained_heap_changes_no_bit_and_no_setting_of_the_user() -> None:
    code = (
        "import os; import torch; from contourdiff.inference.acceleration import retained_heap\n"
        "x = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)); before = x @ x\n"
        "with retained_heap() as taken: assert torch.equal(x @ x, before)\n"
        "with retained_heap(False) as disabled: pass\n"
        "os.environ['MALLOC_MMAP_MAX_'] = '0'\n"
        "with retained_heap() as of_the_user: pass\n"
        "print(taken, disabled, of_the_user)"
    )
    assert in_a_process(code) == [f"{sys.platform.startswith('linux')} False False"]


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="the memory of a process is read from /proc"
)
def test_a_retained_heap_is_released_when_the_outermost_context_ends() -> None:
    """Freed blocks between others stay in the process, go back to the kernel at the end, and are not kept any more."""
    code = (
        "import re; from pathlib import Path; import torch\n"
        "from contourdiff.inference.acceleration import retained_heap\n"
        "held = lambda: int(re.search(r'VmRSS:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1000\n"
        "with retained_heap() as taken:\n"
        "    with retained_heap(): pass\n"
        "    before = held(); blocks = [torch.ones(2_500_000) for _ in range(20)]; full = held()\n"
        "    stay = blocks[1::2]; del blocks; kept = held()\n"
        "    block = torch.ones(20_000_000); top = held(); del block; print(not taken or top - held() < 20)\n"
        "print(not taken or (full - before > 190 and full - kept < 20 and kept - held() > 90))\n"
        "low = held(); blocks = [torch.ones(10_000_000) for _ in range(6)]; full = held(); stay += blocks[1::2]\n"
        "del blocks; print(not taken or (full - low > 230 and full - held() > 30))"
    )  # of three blocks of 40 MB one or two may lie in holes of the heap, which depends on addresses
    assert in_a_process(code) == ["True", "True", "True"]
