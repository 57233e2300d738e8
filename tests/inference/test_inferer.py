# SPDX-License-Identifier: Apache-2.0
"""The volume inferer: order, batches and seeds change nothing that they should not."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from contourdiff.sampling.noise import CandidateKey, NoiseStream
from contourdiff.sampling.selection import SelectionRules, choose
from contourdiff.sampling.solvers import NoiseLevel, clean_image, ddim, even_schedule
from helpers import RULES, SCHEDULER, as_case, contours, inferer, make_seeded, translate_contours


def test_same_shape_and_gray_levels_and_empty_slices_stay_empty() -> None:
    volume = contours()
    result = translate_contours(volume)
    assert result.shape == volume.shape
    assert result.min() >= 0
    assert result.max() <= 255
    assert not result[[0, 3]].any()
    assert all(result[index].any() for index in (1, 2, 4, 5, 6))


def test_a_volume_without_contours_costs_no_network_call() -> None:
    def network(*_: object) -> torch.Tensor:
        raise AssertionError("the network was called")

    (result,) = inferer().translate(torch.zeros(1, 1, 4, 10, 10), network)
    assert not result.gray_levels.any()
    assert result.network_calls == 0
    assert result.choices == [None] * 4


def test_same_case_and_seed_alone_in_a_batch_and_reversed() -> None:
    names = ["a", "b", "c"]
    volumes = {name: contours(number) for number, name in enumerate(names)}
    together = inferer()(as_case(list(volumes.values()), names), make_seeded())
    backward = inferer()(as_case(list(volumes.values())[::-1], names[::-1]), make_seeded())
    for position, name in enumerate(names):
        alone = translate_contours(volumes[name], name)
        assert torch.equal(alone, torch.as_tensor(together[position, 0]))
        assert torch.equal(alone, torch.as_tensor(backward[2 - position, 0]))


def test_case_and_seed_matter() -> None:
    volume = contours()
    assert not torch.equal(translate_contours(volume, "a"), translate_contours(volume, "b"))
    assert not torch.equal(translate_contours(volume, seed=0), translate_contours(volume, seed=1))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_another_batch_size_differs_by_rounding_only(batch_size: int) -> None:
    torch.testing.assert_close(
        translate_contours(contours()),
        translate_contours(contours(), batch_size=batch_size),
        atol=1e-2,
        rtol=0,
    )


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_batched_selection_equals_a_plain_sequential_loop(solver: str) -> None:
    """Slice after slice, candidate after candidate, each in a batch of its own, padded to the same size."""
    volume, network = contours(shape=(5, 12, 8)), make_seeded()
    scheduler = (
        SCHEDULER
        if solver == "ddim"
        else DDPMScheduler(num_train_timesteps=4, prediction_type="v_prediction")
    )
    translation = inferer(scheduler=scheduler, margin_px=99, solver=solver)
    batched = torch.as_tensor(translation(as_case([volume], ["a"]), network)[0, 0])

    def draw(index: int, round_: int) -> torch.Tensor:
        images = []
        for candidate in range(RULES.candidates):
            contour = volume[index][None, None].expand(4, -1, -1, -1)
            images.append(
                translation.denoiser(network)(contour, [("a", index, round_, candidate)] * 4)[0]
            )
        return torch.stack(images)

    with torch.no_grad():
        for choice, image in choose(draw, [1, 2, 4], RULES):
            assert torch.equal(batched[choice.slice_index], image)


def test_solve_is_ddim_on_the_candidates_own_noise() -> None:
    network, contour = make_seeded(), contours()[1][:20, :16]
    keys = [("case", 1, 0, number) for number in range(4)]
    noise = NoiseStream([CandidateKey(0, *key) for key in keys], (1, 20, 16)).draw()
    stacked = contour[None, None].expand(4, -1, -1, -1)

    def denoise(x: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        output = network(torch.cat([x, stacked], 1), torch.full((4,), level.timestep))
        return clean_image(output, x, level.alpha_bar, "v_prediction")

    with torch.no_grad():
        expected = ddim(denoise, noise, even_schedule(SCHEDULER.alphas_cumprod, 3))
        got = inferer().denoiser(network)(stacked, keys)
    assert torch.equal(got, ((expected[:, 0] + 1) * 127.5).clamp(0, 255))


def test_calls_are_full_batches_and_no_more_than_needed() -> None:
    sizes: list[int] = []
    network = make_seeded()

    def counting(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return network(x, t)

    counting.size_divisor = network.size_divisor  # type: ignore[attr-defined]
    rules = SelectionRules(candidates=2, max_rounds=1)
    (result,) = inferer(rules=rules).translate(as_case([contours()], ["a"]), counting)
    assert set(sizes) == {4}
    assert result.network_calls == 3  # 5 slices of 2 candidates in batches of 4
    assert len(sizes) == 3 * 3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_axis(axis: int) -> None:
    volume = contours()
    moved = translate_contours(volume.moveaxis(0, axis).contiguous(), slice_axis=axis)
    assert torch.equal(moved.moveaxis(axis, 0), translate_contours(volume))


def test_wrong_shape_is_explained() -> None:
    with pytest.raises(
        ValueError, match=r"inputs must be \(B, 1, H, W, D\), got \(1, 4, 10, 10\); add Ensure"
    ):
        inferer()(torch.zeros(1, 4, 10, 10), make_seeded())


def test_the_result_has_the_metadata_of_its_input() -> None:
    batch = as_case([contours(), contours(1)], ["a", "b"])
    results = inferer().translate(batch, make_seeded())
    assert [result.case for result in results] == ["a", "b"]
    assert [result.gray_levels.meta["filename_or_obj"] for result in results] == [
        "folder/a.nii.gz",
        "folder/b.nii.gz",
    ]
    stacked = inferer()(batch, make_seeded())
    assert all(
        torch.equal(result.gray_levels, volume)
        for result, volume in zip(results, stacked, strict=True)
    )


def test_a_halved_batch_stays_for_the_volumes_that_follow() -> None:
    network, sizes = make_seeded(), []

    def small_device(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("no memory")
        return network(x, t)

    small_device.size_divisor = network.size_divisor  # type: ignore[attr-defined]
    translation = inferer(batch_size=8)
    first = translation.translate(contours()[None, None], small_device)
    assert sizes.count(8) == sizes.count(4) == 1
    second = translation.translate(contours()[None, None], small_device)
    assert sizes.count(8) == sizes.count(4) == 1
    assert first[0].batch_size == second[0].batch_size == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "euler"}, "solver must be one of"),
        ({"eta": -1.0}, "eta must be 0 or more"),
        ({"num_inference_steps": 0}, "num_inference_steps must lie in"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"acceleration": "trace"}, "acceleration must be one of"),
        ({"noise_length_mm": -1.0}, "length_mm must be 0"),
        (
            {"keep_spread": True, "rules": SelectionRules(1, 1)},
            "an uncertainty map requires 2 candidates",
        ),
    ],
)
def test_arguments_are_validated_before_any_work(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inferer(**settings)
