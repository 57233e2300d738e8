# SPDX-License-Identifier: Apache-2.0
"""Batches of the denoiser: memory, precision and steps change nothing else."""

from __future__ import annotations

import logging
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from contourdiff.inference import Execution
from contourdiff.inference.acceleration import Accelerator
from contourdiff.inference.denoiser import Denoiser, fitting_batch_size
from contourdiff.sampling import Sampler
from helpers.inferers import SCHEDULER, as_case, make_inferer, random_contours, translate_contours
from helpers.networks import make_attention_network, make_seeded

SAMPLER = Sampler(SCHEDULER, num_inference_steps=4)
PLACES = [("a", 1, 0, number) for number in range(4)]


def test_mixed_precision_is_near() -> None:
    network = make_attention_network()
    given = (torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(1)) > 0.8).float()
    exact, mixed, lean = (
        Denoiser(network, SAMPLER, batch_size=4, amp=amp, accelerator=Accelerator(acceleration))(
            given, PLACES
        )
        for amp, acceleration in ((False, None), (True, None), (True, "lean"))
    )
    assert 0 < (mixed - exact).abs().mean() < 1
    assert 0 < (lean - exact).abs().mean() < 1


class WeightCasts(TorchDispatchMode):
    """Counts how often a weight of a network is cast to bfloat16."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.addresses = {weight.data_ptr() for weight in network.parameters()}
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        is_cast = str(func).startswith(("aten._to_copy", "aten.to."))
        if is_cast and result.dtype == torch.bfloat16:
            self.count += args[0].data_ptr() in self.addresses
        return result


def test_mixed_precision_casts_each_weight_once_a_chain() -> None:
    """In inference mode torch casts them at every step; images are the same to the bit."""
    network = make_attention_network()
    given = random_contours()[1:5, None, :20, :16]
    counts = {}
    for steps in (1, 4):
        denoiser = Denoiser(network, replace(SAMPLER, num_inference_steps=steps), 4, amp=True)
        with WeightCasts(network) as casts:
            images = denoiser(given, PLACES)
        counts[steps] = casts.count
        with WeightCasts(network) as at_every_step, torch.inference_mode():
            expected = denoiser(given, PLACES)
        assert torch.equal(images, expected)
        assert at_every_step.count == steps * casts.count > 0
    assert counts[4] == counts[1]


def test_a_failed_batch_is_freed_before_the_cache_is_emptied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The traceback of the error holds its tensors."""
    tensors: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def small_device(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        activations = torch.zeros_like(x)
        tensors.extend([weakref.ref(x), weakref.ref(activations)])
        if len(x) > 1:
            raise torch.OutOfMemoryError
        return activations[:, :1]

    def empty_cache() -> None:
        alive.extend(tensor() is not None for tensor in tensors)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    Denoiser(small_device, SAMPLER, batch_size=4)(random_contours()[1:5, None], PLACES)  # type: ignore[arg-type]
    assert alive == [False] * 2 + [False] * 4  # of a batch of 4, then also of 2


class FakeMemory:
    """Memory of a device of 2000 bytes: 400 of weights, 600 that the first forward pass keeps, and 100 an item."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocated = 400
        self.peak = 400
        self.kept = 600
        replacements = {
            "reset_peak_memory_stats": self.reset,
            "memory_allocated": lambda _: self.allocated,
            "max_memory_allocated": lambda _: self.peak,
            "mem_get_info": lambda _: (2000 - self.allocated, 2000),
            "empty_cache": lambda: None,
        }
        for name, function in replacements.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def reset(self, device: torch.device) -> None:
        self.peak = self.allocated

    def network(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.allocated += self.kept
        self.kept = 0
        self.peak = max(self.peak, self.allocated + 100 * len(x))
        return x[:, :1]


def test_what_the_first_pass_keeps_is_no_part_of_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1000 bytes that are free then, 8 items of 100 take four fifths; it would be 64 if the 600 were an item's."""
    memory = FakeMemory(monkeypatch)
    denoiser = Denoiser(memory.network, SAMPLER)  # type: ignore[arg-type]
    assert denoiser.fit(random_contours()[1:2, None]) == denoiser.batch_size == 8


@pytest.mark.parametrize("limit", [1, 3])
def test_out_of_memory_halves_the_batch_and_loses_nothing(
    limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    network = make_seeded()
    sizes: list[int] = []

    def small_device(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > limit:
            raise torch.OutOfMemoryError
        answer: torch.Tensor = network(x, t)
        return answer

    small_device.size_divisor = network.size_divisor  # type: ignore[attr-defined]
    volume = as_case([random_contours()], ["a"])
    with caplog.at_level(logging.WARNING):
        got = make_inferer(batch_size=8)(volume, small_device)
    fitting = {1: 1, 3: 2}[limit]
    torch.testing.assert_close(
        got, make_inferer(batch_size=fitting)(volume, network), atol=1e-2, rtol=0
    )
    assert sizes[-1] == fitting
    assert f"out of memory: batch_size is {fitting} from here on" in caplog.text


@pytest.mark.parametrize(
    ("fixed", "item", "free", "expected"),
    [
        (100, 10, 1000, 64),
        (100, 10, 500, 16),
        (0, 10, 100, 8),
        (0, 10, 5, 1),
        (1000, 10, 10, 1),
        (0, 0, 9, 8),
    ],
)
def test_batch_size_from_free_memory(fixed: int, item: int, free: int, expected: int) -> None:
    assert fitting_batch_size(lambda items: fixed + item * items, free) == expected


def test_without_a_batch_size_a_cpu_takes_eight() -> None:
    (result,) = make_inferer(batch_size=None).translate(
        as_case([random_contours()], ["a"]), make_seeded()
    )
    assert result.batch_size == 8
    assert torch.equal(
        result.gray_levels[0].as_tensor(), translate_contours(random_contours(), batch_size=8)
    )


def test_not_even_one_slice_fits() -> None:
    def no_memory(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(
        MemoryError, match="one slice does not fit into the device's memory; expected memory"
    ):
        make_inferer()(as_case([random_contours()], ["a"]), no_memory)


def test_a_denoiser_is_kept_while_network_and_sampler_are_the_same() -> None:
    """So a batch that was halved stays so, and a network is converted once."""
    execution, network = Execution(), make_seeded()
    denoiser = execution.denoiser(network, SAMPLER)
    assert execution.denoiser(network, SAMPLER) is denoiser
    assert execution.denoiser(make_seeded(), SAMPLER) is not denoiser
    other = Sampler(SCHEDULER, num_inference_steps=2)
    assert execution.denoiser(network, other).sampler is other  # type: ignore[union-attr]
