# SPDX-License-Identifier: Apache-2.0
"""Speed changes no result: another engine, a converted network that is never stale, and a retained heap."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from contourdiff.inference import acceleration, openvino_network
from contourdiff.inference.acceleration import (
    Accelerator,
    bfloat16_pays,
    fastest_acceleration,
)
from contourdiff.inference.denoiser import Denoiser
from contourdiff.networks import ContourUNet
from contourdiff.sampling import Sampler
from helpers.inferers import SCHEDULER, as_case, make_inferer, random_contours, translate_contours
from helpers.networks import make_attention_network, make_seeded

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed, see contourdiff[cpu]"
)
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


ENGINES = ["lean", pytest.param("openvino", marks=needs_openvino)]
CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_acceleration_changes_no_choice(engine: str) -> None:
    assert choices_of(acceleration=engine) == choices_of()


@pytest.mark.parametrize("engine", ENGINES)
def test_acceleration_changes_gray_levels_by_rounding_alone(engine: str) -> None:
    given = (torch.rand(4, 1, 32, 48, generator=torch.Generator().manual_seed(1)) > 0.8).float()
    plain = denoised(make_attention_network(), given, None)
    assert float(plain.std()) > 5
    assert (denoised(make_attention_network(), given, engine) - plain).abs().max() < 0.05


@needs_openvino
def test_openvino_takes_frames_of_any_size_and_class_labels() -> None:
    network = ContourUNet(
        patch_size=2,
        channels=[16, 32],
        attention_levels=[False, True],
        num_res_blocks=1,
        num_head_channels=16,
        norm_num_groups=8,
        contrasts=["t1", "t2"],
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    forward = Accelerator("openvino")(network.eval(), CPU)
    timesteps, labels = torch.tensor([3, 700, 999]), torch.tensor([0, 1, 0])
    with torch.no_grad():
        for size in ((16, 16), (32, 20), (20, 32)):
            inputs = torch.randn(3, 2, *size)
            expected = network(inputs, timesteps, class_labels=labels)
            torch.testing.assert_close(
                forward(inputs, timesteps, class_labels=labels), expected, atol=1e-4, rtol=1e-4
            )


@needs_openvino
def test_a_network_stays_compiled_for_the_last_shapes_alone() -> None:
    network = openvino_network.OpenVinoNetwork(make_seeded())
    timesteps = torch.zeros(1, dtype=torch.long)
    sizes = [16, 32, 48, 64, 80]
    for size in sizes:
        network(torch.zeros(1, 2, size, 16), timesteps)
    kept = [shapes[0][2] for shapes in network._requests]
    assert kept == sizes[-openvino_network.COMPILED_MODELS :]


class Bright(torch.nn.Module):
    """A network whose code depends on values."""

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        del timesteps
        return x[:, :1] * (2 if float(x.mean()) > 1 else 3)


@needs_openvino
def test_a_network_that_a_trace_does_not_hold_is_called_as_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = openvino_network._converted
    dark = [torch.zeros(1, 2, 8, 8), torch.zeros(1, dtype=torch.long)]
    monkeypatch.setattr(openvino_network, "_converted", lambda network, _: convert(network, dark))
    forward = Accelerator("openvino")(Bright(), CPU)
    inputs, timesteps = torch.full((2, 2, 8, 8), 5.0), torch.zeros(2, dtype=torch.long)
    assert torch.equal(forward(inputs, timesteps), 2 * inputs[:, :1])
    assert "torch does, which is slower: its result differs by 50 %" in caplog.text


@needs_openvino
def test_a_network_that_openvino_cannot_convert_is_called_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Spectrum(torch.nn.Module):
        def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x[:, :1]).abs().unsqueeze(-1) + 0 * timesteps[0]

    inputs, timesteps = torch.eye(8).repeat(1, 2, 1, 1), torch.zeros(1, dtype=torch.long)
    network = Spectrum()
    result = Accelerator("openvino")(network, CPU)(inputs, timesteps)
    assert torch.equal(result, network(inputs, timesteps))
    assert "OpenVINO does not run this network" in caplog.text


@pytest.mark.slow
@needs_openvino
def test_openvino_sends_no_event_over_the_network() -> None:
    """Its package ``openvino_telemetry`` would, as soon as it is imported."""
    code = (
        "import sys, socket\n"
        "def refuse(event, arguments):\n"
        "    assert not event.startswith('socket.connect'), arguments\n"
        "sys.addaudithook(refuse)\n"
        "import torch; from contourdiff.inference.openvino_network import OpenVinoNetwork\n"
        "class Twice(torch.nn.Module):\n"
        "    def forward(self, x, timesteps): return 2 * x + 0 * timesteps\n"
        "print(float(OpenVinoNetwork(Twice())(torch.ones(1, 1, 1, 1), torch.zeros(1)).sum()))\n"
        "print(sys.modules.get('openvino_telemetry'))"
    )
    assert in_a_process(code) == ["2.0", "None"]


@pytest.mark.slow
@needs_openvino
def test_a_signal_does_no_harm_after_networks_have_come_and_gone() -> None:
    """A process with several of OpenVINO's cores kept a stack for signals that was unmapped, and ended."""
    code = (
        "import os, signal, torch\n"
        "from contourdiff.inference.openvino_network import OpenVinoNetwork\n"
        "class Twice(torch.nn.Module):\n"
        "    def forward(self, x, timesteps): return 2 * x + 0 * timesteps\n"
        "networks = [OpenVinoNetwork(Twice()) for _ in range(3)]\n"
        "for network in networks: network(torch.ones(1, 1, 1, 1), torch.zeros(1))\n"
        "del networks[0], network; networks.clear()\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('received'))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)"
    )
    assert in_a_process(code) == ["received"]


@pytest.mark.slow
@needs_openvino
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signal stacks of Linux")
def test_openvino_leaves_the_thread_its_signal_stack() -> None:
    """One of its own would be unmapped when the core is freed."""
    code = (
        "import ctypes; from contourdiff.inference import openvino_network as engine\n"
        "stack = engine._SignalStack()\n"
        "def size():\n"
        "    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)); return stack.size\n"
        "before = size(); engine.has_bfloat16(); print(before, size())"
    )
    assert in_a_process(code) == ["0 0"]


def test_without_openvino_torch_is_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "_has_openvino", lambda: False)
    assert fastest_acceleration(CPU) == "lean"
    assert not bfloat16_pays(CPU, "lean")
    with pytest.raises(ValueError, match="expected OpenVINO for acceleration=openvino"):
        Accelerator("openvino")


@needs_openvino
@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_bfloat16_is_for_processors_that_multiply_in_it(
    has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceleration, "has_bfloat16", lambda: has_bfloat16)
    assert fastest_acceleration("cpu") == "openvino"
    assert bfloat16_pays("cpu", "openvino") is has_bfloat16
    assert not bfloat16_pays("cpu", "lean")


def test_on_a_gpu_torch_runs_in_bfloat16() -> None:
    gpu = torch.device("cuda:1")
    assert fastest_acceleration(gpu) == "lean"
    assert bfloat16_pays(gpu, "lean")
    assert bfloat16_pays(gpu, None)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_volume_is_the_same_alone_and_in_a_batch(engine: str) -> None:
    volumes = [random_contours(number) for number in range(2)]
    together = make_inferer(acceleration=engine)(as_case(volumes, ["a", "b"]), make_seeded())
    for position, name in enumerate("ab"):
        alone = translate_contours(volumes[position], name, acceleration=engine)
        assert torch.equal(alone, torch.as_tensor(together[position, 0]))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_new_weights_are_seen_by_the_next_volume(engine: str) -> None:
    """A translation inside a training never runs with the weights that were converted first."""
    translation, network = make_inferer(acceleration=engine), make_seeded()
    before = torch.as_tensor(translation(as_case([random_contours()], ["a"]), network))
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(-1)
    after = torch.as_tensor(translation(as_case([random_contours()], ["a"]), network))
    assert not torch.allclose(before, after, atol=1)


@needs_openvino
def test_a_network_is_converted_anew_for_another_type_or_precision() -> None:
    network, accelerate = make_seeded(), Accelerator("openvino")
    first = accelerate(network, CPU)
    assert accelerate(network, CPU) is first
    assert accelerate(network, CPU, True) is not first
    first = accelerate(network, CPU)
    network.to(torch.float64)
    network.to(torch.float32)
    assert accelerate(network, CPU) is not first


@pytest.mark.slow
@needs_openvino
def test_a_network_is_converted_once_for_many_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[object] = []
    convert = openvino_network._converted

    def counted(network: torch.nn.Module, inputs: list[torch.Tensor]) -> object:
        converted.append(network)
        return convert(network, inputs)

    monkeypatch.setattr(openvino_network, "_converted", counted)
    translation, network = make_inferer(acceleration="openvino"), make_seeded()
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
