# SPDX-License-Identifier: Apache-2.0
"""The engine: what makes it fast changes nothing that it makes."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from contourdiff.inference import allocator
from contourdiff.inference import denoiser as engine
from contourdiff.inference.allocator import keep_freed_memory, stop_keeping_freed_memory
from contourdiff.inference.denoiser import Denoiser, fitting_batch_size
from contourdiff.inference.inferer import ContourTranslationInferer
from contourdiff.inference.volume_state import VolumeResult
from contourdiff.networks import ContourUNet
from contourdiff.sampling import noise
from contourdiff.sampling.candidate_pool import CandidatePool
from contourdiff.sampling.noise import kernel_weights
from contourdiff.sampling.selection import SelectionRules, choose, runs_of, walk_order
from helpers import RULES, SCHEDULER, as_case, contours, inferer, make_seeded, make_tiny_network, translate

ITEMS = [("a", 1, 0, number) for number in range(4)]


def choices_of(**options: object) -> list[tuple[int, int, int]]:
    records: list[VolumeResult] = []
    inferer(on_volume=records.append, **options)(as_case([contours()], ["a"]), make_seeded())
    return [(c.slice_index, c.round, c.candidate) for c in records[0].choices if c is not None]


def attention_network() -> ContourUNet:
    torch.manual_seed(0)
    network = ContourUNet(
        patch_size=2, channels=[32, 32], attention_levels=[False, True], num_res_blocks=1, num_head_channels=16,
        use_flash_attention=True,
    )  # fmt: skip
    torch.nn.init.normal_(network.out[2].conv.weight, std=0.05)
    return network.eval()


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver"])
def test_traced_network_makes_the_same_picture(solver: str) -> None:
    """Traced at one size and used at another, too."""
    network = attention_network()
    plain = Denoiser(network, SCHEDULER, solver=solver, num_inference_steps=4, batch_size=4)
    traced = Denoiser(network, SCHEDULER, solver=solver, num_inference_steps=4, batch_size=4, acceleration="trace")
    for size in ((32, 24), (24, 40)):
        given = (torch.rand(4, 1, *size, generator=torch.Generator().manual_seed(1)) > 0.8).float()
        torch.testing.assert_close(traced(given, ITEMS), plain(given, ITEMS), atol=0.02, rtol=0)
    assert isinstance(traced.accelerator._forward, torch.jit.ScriptModule)


def small_network() -> ContourUNet:
    torch.manual_seed(0)
    network = ContourUNet(patch_size=2, channels=[8], attention_levels=[False], num_res_blocks=1, norm_num_groups=4)
    torch.nn.init.normal_(network.out[2].conv.weight, std=0.05)
    return network.eval()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler, and g++ is not there")
def test_compiled_network_makes_the_same_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    network = small_network()
    plain, compiled = (
        Denoiser(network, SCHEDULER, num_inference_steps=3, batch_size=4, acceleration=acceleration)
        for acceleration in (None, "compile")
    )
    given = (torch.rand(4, 1, 32, 24, generator=torch.Generator().manual_seed(1)) > 0.8).float()
    torch.testing.assert_close(compiled(given, ITEMS), plain(given, ITEMS), atol=0.02, rtol=0)
    assert compiled.accelerator._forward is not network


def test_compiled_whole_and_for_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes differ in size: the second one makes the sizes variables, and from then on nothing is compiled anew."""
    counter = CompileCounter()
    compile_stock = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, mode: compile_stock(network, backend=counter, fullgraph=True))
    torch._dynamo.reset()
    network = attention_network()
    compiled = Denoiser(network, SCHEDULER, num_inference_steps=2, batch_size=4, acceleration="compile")
    for size in ((32, 24), (24, 40), (48, 32), (40, 56)):
        compiled(torch.zeros(4, 1, *size), ITEMS)
    assert counter.frame_count == 2


def test_network_that_cannot_be_compiled_is_taken_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*arguments: object, **named: object) -> None:
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", lambda network, mode: no_compiler)
    network = small_network()
    plain, compiled = (
        Denoiser(network, SCHEDULER, num_inference_steps=2, batch_size=4, acceleration=acceleration)
        for acceleration in (None, "compile")
    )
    given = torch.ones(4, 1, 16, 16)
    torch.testing.assert_close(compiled(given, ITEMS), plain(given, ITEMS), atol=0.02, rtol=0)
    assert "the network is not compiled: no compiler" in caplog.messages


@pytest.mark.parametrize("acceleration", ["lean", "trace"])
def test_acceleration_changes_no_choice(acceleration: str) -> None:
    assert choices_of(acceleration=acceleration) == choices_of()


def test_white_noise_that_slices_share_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer draws than a quarter of those that every batch would make by itself."""
    drawn: list[object] = []
    generator = noise.candidate_generator
    monkeypatch.setattr(noise, "candidate_generator", lambda key: drawn.append(key) or generator(key))
    volume = as_case([contours(shape=(24, 16, 16))], ["a"])
    rules = SelectionRules(candidates=2, max_rounds=1)
    options = {"rules": rules, "noise_length_mm": 3.0, "batch_size": 4, "num_inference_steps": 1}
    records: list[VolumeResult] = []
    inferer(on_volume=records.append, **options)(volume, make_seeded())
    reach = len(kernel_weights(3.0, 1.0)) // 2
    for_each_batch = (2 + 2 * reach) * rules.candidates
    assert len(drawn) == len(set(drawn))
    assert 4 * len(drawn) < records[0].network_calls * for_each_batch


@pytest.mark.parametrize(("amp", "expected"), [(False, 1), (True, 0)])
@pytest.mark.parametrize("acceleration", ["lean", "trace"])
def test_fewer_multiplications_are_for_float32(
    acceleration: str, amp: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 sums of rows would lose digits."""
    asked: list[torch.nn.Module] = []
    make = engine.with_fewer_multiplications
    monkeypatch.setattr(engine, "with_fewer_multiplications", lambda network: asked.append(network) or make(network))
    given = (torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(1)) > 0.8).float()
    options = {"num_inference_steps": 2, "batch_size": 4, "amp": amp}
    got = Denoiser(attention_network(), SCHEDULER, acceleration=acceleration, **options)(given, ITEMS)  # type: ignore[arg-type]
    plain = Denoiser(attention_network(), SCHEDULER, **options)(given, ITEMS)  # type: ignore[arg-type]
    assert len(asked) == expected
    assert (got - plain).abs().mean() < (1 if amp else 1e-3)


def test_tracing_is_the_same_alone_and_in_a_batch() -> None:
    volumes = [contours(number) for number in range(2)]
    together = inferer(acceleration="trace")(as_case(volumes, ["a", "b"]), make_seeded())
    for position, name in enumerate("ab"):
        alone = translate(volumes[position], name, acceleration="trace")
        assert torch.equal(alone, torch.as_tensor(together[position, 0]))


def test_new_weights_are_seen_by_the_next_volume() -> None:
    """A translation inside a training must not go on with the weights that were traced first."""
    translation, network = inferer(acceleration="trace"), make_seeded()
    before = torch.as_tensor(translation(as_case([contours()], ["a"]), network))
    with torch.no_grad():
        network.out[2].conv.weight.mul_(-1)  # type: ignore[union-attr]
    after = torch.as_tensor(translation(as_case([contours()], ["a"]), network))
    assert not torch.allclose(before, after, atol=1)


def test_a_network_is_traced_once_for_many_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[object] = []
    trace = torch.jit.trace
    monkeypatch.setattr(torch.jit, "trace", lambda *args, **options: traces.append(args) or trace(*args, **options))
    translation, network = inferer(acceleration="trace"), make_seeded()
    for number in range(3):
        translation(as_case([contours(number)], [str(number)]), network)
    assert len(traces) == 1
    translation(as_case([contours()], ["a"]), make_seeded())
    assert len(traces) == 2


def test_what_cannot_be_traced_is_taken_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    network = make_tiny_network()

    class Choosy(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            if len(x) == 1:
                raise RuntimeError("not for tracing")
            answer: torch.Tensor = network(x, t)
            return answer

    given = (torch.rand(4, 1, 16, 16) > 0.8).float()
    with caplog.at_level(logging.INFO):
        got = Denoiser(Choosy(), SCHEDULER, num_inference_steps=2, batch_size=4, acceleration="trace")(given, ITEMS)
    expected = Denoiser(network, SCHEDULER, num_inference_steps=2, batch_size=4)(given, ITEMS)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)
    assert "the network is not traced: not for tracing" in caplog.text


def test_mixed_precision_is_near() -> None:
    network = attention_network()
    given = (torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(1)) > 0.8).float()
    exact, mixed, traced = (
        Denoiser(network, SCHEDULER, num_inference_steps=4, batch_size=4, amp=amp, acceleration=acceleration)(
            given, ITEMS
        )
        for amp, acceleration in ((False, None), (True, None), (True, "trace"))
    )
    assert 0 < (mixed - exact).abs().mean() < 1
    assert 0 < (traced - exact).abs().mean() < 1


@pytest.mark.parametrize("limit", [1, 3])
def test_out_of_memory_halves_the_batch_and_loses_nothing(limit: int, caplog: pytest.LogCaptureFixture) -> None:
    network = make_seeded()
    sizes: list[int] = []

    def small_device(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > limit:
            raise torch.OutOfMemoryError
        answer: torch.Tensor = network(x, t)
        return answer

    small_device.size_divisor = network.size_divisor  # type: ignore[attr-defined]
    volume = as_case([contours()], ["a"])
    with caplog.at_level(logging.WARNING):
        got = inferer(batch_size=8)(volume, small_device)  # type: ignore[arg-type]
    fitting = {1: 1, 3: 2}[limit]
    torch.testing.assert_close(got, inferer(batch_size=fitting)(volume, network), atol=1e-2, rtol=0)
    assert sizes[-1] == fitting
    assert f"out of memory: batch_size is {fitting} from here on" in caplog.text


@pytest.mark.parametrize(
    ("fixed", "item", "free", "expected"),
    [(100, 10, 1000, 64), (100, 10, 500, 16), (0, 10, 100, 8), (0, 10, 5, 1), (1000, 10, 10, 1), (0, 0, 9, 8)],
)
def test_batch_size_from_free_memory(fixed: int, item: int, free: int, expected: int) -> None:
    assert fitting_batch_size(lambda items: fixed + item * items, free) == expected


def test_without_a_batch_size_a_cpu_takes_eight() -> None:
    records: list[VolumeResult] = []
    got = inferer(batch_size=None, on_volume=records.append)(as_case([contours()], ["a"]), make_seeded())
    assert records[0].batch_size == 8
    assert torch.equal(torch.as_tensor(got[0, 0]), translate(contours(), batch_size=8))


def test_not_even_one_slice_fits() -> None:
    def no_memory(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(MemoryError, match="one slice does not fit into the device's memory; expected room"):
        inferer()(as_case([contours()], ["a"]), no_memory)  # type: ignore[arg-type]


def test_bad_engine_settings_are_refused_when_the_inferer_is_made() -> None:
    with pytest.raises(ValueError, match="acceleration must be one of"):
        inferer(acceleration="magic")
    with pytest.raises(ValueError, match="solver must be one of"):
        inferer(solver="euler")
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        inferer(batch_size=0)
    with pytest.raises(ValueError, match="length_mm"):
        inferer(noise_length_mm=-1.0)


def synthetic(slices: int, candidates: int, spread: float, seed: int = 0) -> torch.Tensor:
    """Images of every (slice, round, candidate): constant gray levels whose distances are known."""
    generator = torch.Generator().manual_seed(seed)
    return 100 + spread * torch.randn(slices, 5, candidates, generator=generator)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 8, 64])
@pytest.mark.parametrize("threshold", [0.0, 2.0, 1e9])
def test_work_ahead_changes_no_choice_and_is_bounded(batch_size: int, threshold: float) -> None:
    levels = synthetic(20, 4, 3.0)
    rules = SelectionRules(4, 5, mean_threshold=100.0, distance_threshold=threshold)
    indices = [index for index in range(20) if index not in (7, 8)]
    held: list[int] = []
    batches: list[int] = []

    def denoise(contours: torch.Tensor, items: object) -> torch.Tensor:
        batches.append(len(contours))
        held.append(len(drawer._ready))
        return torch.stack([levels[index, round_, candidate].expand(2, 2) for _, index, round_, candidate in items])  # type: ignore[attr-defined]

    order = [index for index, _ in walk_order(indices)]
    drawer = CandidatePool(denoise, torch.ones(20, 2, 2), "a", order, 4, 5, batch_size)
    got, asked = [], 0
    for choice, _ in choose(drawer, indices, rules):
        got.append(choice)
        asked += choice.rounds * 4
        drawn = drawer.drawn(choice.slice_index)
        assert len(drawn) == choice.rounds * 4
        drawer.forget(choice.slice_index)
    plain = [
        choice
        for choice, _ in choose(
            lambda index, round_: levels[index, round_][:, None, None].expand(4, 2, 2), indices, rules
        )
    ]
    assert got == plain
    assert max(batches) <= batch_size
    assert max(held) <= 4 * batch_size + 5 * 4
    assert len(batches) <= -(-asked // min(batch_size, 4)) + 1
    assert not drawer._ready or max(place[0] for place in drawer._ready) in order


def test_a_low_pass_rate_wastes_no_full_batch() -> None:
    """Slices that fail all rounds: batches of 8 take two rounds of 4 at once, so half the calls of batches of 4."""
    calls = {}
    for batch_size in (4, 8):
        records: list[VolumeResult] = []
        rules = SelectionRules(4, 4, mean_threshold=0.0, distance_threshold=-1.0)
        inferer(rules=rules, batch_size=batch_size, on_volume=records.append)(
            as_case([contours()], ["a"]), make_seeded()
        )
        calls[batch_size] = records[0].network_calls
    assert calls == {4: 5 * 4, 8: 5 * 4 // 2}


def test_runs_and_walks() -> None:
    assert runs_of([1, 2, 5, 7, 8]) == [[1, 2], [5], [7, 8]]
    assert walk_order([1, 2, 5]) == [(1, None), (2, 1), (5, None)]
    sizes = dict(enumerate([1.0, 2, 9, 3, 1, 0]))
    assert walk_order([0, 1, 2, 3, 4, 5], sizes) == [(2, None), (3, 2), (1, 2), (4, 3), (0, 1), (5, 4)]


def test_fullest_start_walks_to_both_ends() -> None:
    volume = contours()
    volume[4, :5] = volume[6, :, 9:] = 0  # so that slice 5 has the largest box of slices 4 to 6
    records: list[VolumeResult] = []
    inferer(walk_start="fullest", on_volume=records.append)(as_case([volume], ["a"]), make_seeded())
    neighbors = {c.slice_index: c.neighbor for c in records[0].choices if c is not None}
    assert neighbors[5] is None
    assert (neighbors[4], neighbors[6]) == (5, 5)


def test_correlated_noise_calms_a_volume_and_zero_length_changes_nothing() -> None:
    one = SelectionRules(1, 1)
    same = contours()[1].expand(7, -1, -1).clone()
    assert torch.equal(translate(same, noise_length_mm=0.0), translate(same))
    changes = {
        length: float((translate(same, rules=one, noise_length_mm=length).diff(dim=0)).square().mean())
        for length in (0.0, 1.0, 3.0)
    }
    assert changes[3.0] < 0.5 * changes[1.0] < 0.5 * changes[0.0]


def test_correlated_noise_wants_to_know_the_distance_of_slices() -> None:
    with pytest.raises(ValueError, match="noise_length_mm wants the slices' distance; expected a MetaTensor"):
        inferer(noise_length_mm=2.0)(contours()[None, None], make_seeded())


def test_keeping_freed_memory_is_taken_and_changes_no_bit() -> None:
    """In a process of its own, for the setting concerns all of it."""
    code = (
        "import torch; from contourdiff.inference.allocator import keep_freed_memory\n"
        "x = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)); before = x @ x\n"
        "taken = keep_freed_memory(); assert torch.equal(x @ x, before); print(taken)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(sys.platform.startswith("linux"))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the memory of a process is read from /proc")
def test_kept_memory_is_released_when_told() -> None:
    """Blocks between others that stay are kept when they are freed, handed back afterwards, and not kept any more."""
    code = (
        "import re; from pathlib import Path; import torch\n"
        "from contourdiff.inference.allocator import keep_freed_memory, release_freed_memory, stop_keeping_freed_memory\n"
        "held = lambda: int(re.search(r'VmRSS:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1000\n"
        "if not keep_freed_memory(): raise SystemExit('another C library')\n"
        "before = held(); blocks = [torch.ones(2_500_000) for _ in range(20)]; full = held()\n"
        "stay = blocks[1::2]; del blocks; kept = held()\n"
        "stop_keeping_freed_memory(); taken = release_freed_memory()\n"
        "print(taken, full - before > 190, full - kept < 20, kept - held() > 90, float(sum(b.sum() for b in stay)))\n"
        "low = held(); blocks = [torch.ones(10_000_000) for _ in range(6)]; full = held(); stay += blocks[1::2]\n"
        "del blocks; print(full - low > 230, full - held() > 110)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "another C library" in done.stderr:
        pytest.skip("the C library takes no such settings")
    assert done.stdout.splitlines() == ["True True True True 25000000.0", "True True"], done.stderr


def test_what_was_not_kept_is_not_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the process's own, such as those of its environment, are left alone."""
    made: list[dict[int, int]] = []
    monkeypatch.setattr(allocator, "_set", lambda settings: made.append(settings) or True)
    monkeypatch.setattr(allocator, "_kept", False)
    stop_keeping_freed_memory()
    assert made == []
    keep_freed_memory()
    stop_keeping_freed_memory()
    stop_keeping_freed_memory()
    assert made == [allocator.KEEP, allocator.RELEASE]


def test_rules_of_the_tests_ask_for_further_rounds() -> None:
    """Else the tests above would say little."""
    records: list[VolumeResult] = []
    inferer(on_volume=records.append)(as_case([contours()], ["a"]), make_seeded())
    assert {c.rounds for c in records[0].choices if c is not None} != {1}
    assert isinstance(inferer(), ContourTranslationInferer)
    assert RULES.max_rounds > 1
