# SPDX-License-Identifier: Apache-2.0
"""Batches of the denoiser: memory, precision and steps change nothing else."""

from __future__ import annotations

import logging

import pytest
import torch

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
