# SPDX-License-Identifier: Apache-2.0
"""The volume inferer: order, batches and seeds change nothing that they should not."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from contourdiff.inference.inferer import ContourTranslationInferer
from contourdiff.inference.volume_state import VolumeResult
from contourdiff.sampling.noise import CandidateKey, NoiseStream
from contourdiff.sampling.selection import SelectionRules, choose
from contourdiff.sampling.solvers import ddim
from contourdiff.training.inferer import ContourDiffusionInferer, ContourPrepareBatch
from helpers import RULES, SCHEDULER, as_case, contours, inferer, make_seeded, translate


def test_same_shape_and_gray_levels_and_empty_slices_stay_empty() -> None:
    volume = contours()
    result = translate(volume)
    assert result.shape == volume.shape
    assert result.min() >= 0
    assert result.max() <= 255
    assert not result[[0, 3]].any()
    assert all(result[index].any() for index in (1, 2, 4, 5, 6))


def test_a_volume_without_contours_costs_no_network_call() -> None:
    def network(*_: object) -> torch.Tensor:
        raise AssertionError("the network was called")

    records: list[VolumeResult] = []
    result = inferer(on_volume=records.append)(torch.zeros(1, 1, 4, 10, 10), network)  # type: ignore[arg-type]
    assert not result.any()
    assert records[0].network_calls == 0
    assert records[0].choices == [None] * 4


def test_same_case_and_seed_alone_in_a_batch_and_reversed() -> None:
    names = ["a", "b", "c"]
    volumes = {name: contours(number) for number, name in enumerate(names)}
    together = inferer()(as_case(list(volumes.values()), names), make_seeded())
    backward = inferer()(as_case(list(volumes.values())[::-1], names[::-1]), make_seeded())
    for position, name in enumerate(names):
        alone = translate(volumes[name], name)
        assert torch.equal(alone, torch.as_tensor(together[position, 0]))
        assert torch.equal(alone, torch.as_tensor(backward[2 - position, 0]))


def test_case_and_seed_matter() -> None:
    volume = contours()
    assert not torch.equal(translate(volume, "a"), translate(volume, "b"))
    assert not torch.equal(translate(volume, seed=0), translate(volume, seed=1))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_another_batch_size_differs_by_rounding_only(batch_size: int) -> None:
    torch.testing.assert_close(translate(contours()), translate(contours(), batch_size=batch_size), atol=1e-2, rtol=0)


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_batched_selection_equals_a_plain_sequential_loop(solver: str) -> None:
    """Slice after slice, candidate after candidate, each in a batch of its own, padded to the same size."""
    volume, network = contours(shape=(5, 12, 8)), make_seeded()
    scheduler = SCHEDULER if solver == "ddim" else DDPMScheduler(num_train_timesteps=4, prediction_type="v_prediction")
    translation = ContourTranslationInferer(scheduler, rules=RULES, num_inference_steps=3, batch_size=4, margin_px=99,
                                            solver=solver, progress=False)  # fmt: skip
    batched = torch.as_tensor(translation(as_case([volume], ["a"]), network)[0, 0])

    def draw(index: int, round_: int) -> torch.Tensor:
        images = []
        for candidate in range(RULES.candidates):
            contour = volume[index][None, None].expand(4, -1, -1, -1)
            images.append(translation.denoiser(network)(contour, [("a", index, round_, candidate)] * 4)[0])
        return torch.stack(images)

    with torch.no_grad():
        for choice, image in choose(draw, [1, 2, 4], RULES):
            assert torch.equal(batched[choice.slice_index], image)


def test_solve_is_ddim_on_the_candidates_own_noise() -> None:
    network, contour = make_seeded(), contours()[1][:20, :16]
    keys = [("case", 1, 0, number) for number in range(4)]
    noise = NoiseStream([CandidateKey(0, *key) for key in keys], (1, 20, 16)).draw()
    stacked = contour[None, None].expand(4, -1, -1, -1)
    with torch.no_grad():
        expected = ddim(
            lambda x, t: network(torch.cat([x, stacked], 1), t),
            noise,
            alphas_cumprod=SCHEDULER.alphas_cumprod,
            num_inference_steps=3,
            prediction_type="v_prediction",
        )
        got = inferer().denoiser(network)(stacked, keys)
    assert torch.equal(got, ((expected[:, 0] + 1) * 127.5).clamp(0, 255))


def test_calls_are_full_batches_and_no_more_than_needed() -> None:
    sizes: list[int] = []
    network = make_seeded()

    def counting(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return network(x, t)

    counting.size_divisor = network.size_divisor  # type: ignore[attr-defined]
    records: list[VolumeResult] = []
    rules = SelectionRules(candidates=2, max_rounds=1)
    inferer(rules=rules, on_volume=records.append)(as_case([contours()], ["a"]), counting)  # type: ignore[arg-type]
    assert set(sizes) == {4}
    assert records[0].network_calls == 3  # 5 slices of 2 candidates in batches of 4
    assert len(sizes) == 3 * 3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_axis(axis: int) -> None:
    volume = contours()
    moved = translate(volume.moveaxis(0, axis).contiguous(), slice_axis=axis)
    assert torch.equal(moved.moveaxis(axis, 0), translate(volume))


def test_wrong_shape_is_explained() -> None:
    with pytest.raises(ValueError, match=r"inputs must be \(B, 1, H, W, D\), got \(1, 4, 10, 10\); add Ensure"):
        inferer()(torch.zeros(1, 4, 10, 10), make_seeded())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_training_target_recovers_the_noise(prediction_type: str) -> None:
    scheduler = DDPMScheduler(num_train_timesteps=1000, prediction_type=prediction_type)
    batch = {"image": torch.rand(5, 1, 8, 8) * 2 - 1, "contour": torch.ones(5, 1, 8, 8)}
    images, target, _, extra = ContourPrepareBatch(scheduler)(batch)
    noisy = scheduler.add_noise(images, extra["noise"], extra["timesteps"])
    alpha_bar = scheduler.alphas_cumprod[extra["timesteps"]][:, None, None, None]
    if prediction_type == "v_prediction":
        recovered = alpha_bar.sqrt() * target + (1 - alpha_bar).sqrt() * noisy
    else:
        recovered = target
    torch.testing.assert_close(recovered, extra["noise"], atol=1e-4, rtol=1e-4)
    seen = ContourDiffusionInferer(scheduler)(images, lambda x, timesteps, context: x, **extra)
    torch.testing.assert_close(seen, torch.cat([noisy, batch["contour"]], 1))


def test_fixed_seed_gives_the_same_noise_and_spread_timesteps() -> None:
    prepare = ContourPrepareBatch(SCHEDULER, fixed_seed=3)
    batch = {"image": torch.rand(4, 1, 8, 8), "contour": torch.ones(4, 1, 8, 8)}
    first, second = prepare(batch)[3], prepare(batch)[3]
    assert torch.equal(first["noise"], second["noise"])
    assert first["timesteps"].tolist() == second["timesteps"].tolist() == [125, 375, 625, 875]


def test_more_draws_put_weight_on_high_noise() -> None:
    torch.manual_seed(0)
    images = torch.zeros(4000, 1, 1, 1)
    means = [ContourPrepareBatch(SCHEDULER, timestep_draws=n).get_timesteps(images).float().mean() for n in (1, 2)]
    assert means[0] == pytest.approx(499.5, abs=25)
    assert means[1] == pytest.approx(666, abs=25)
