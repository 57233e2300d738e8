# SPDX-License-Identifier: Apache-2.0
"""The volume inferer: order, batches and seeds change nothing that they should not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.schedulers import DDPMScheduler

from contourdiff.inference import PaintedSlice, Painter, VolumeInferer, VolumeState
from contourdiff.inference.inferer import split_batch
from contourdiff.networks import ContourUNet
from contourdiff.sampling.noise import CandidateKey, NoiseStream
from contourdiff.sampling.selection import SelectionRules, choose
from contourdiff.sampling.solvers import NoiseLevel, clean_image, ddim, even_schedule
from helpers.inferers import (
    RULES,
    SCHEDULER,
    as_case,
    denoiser_of,
    make_inferer,
    random_contours,
    translate_contours,
)
from helpers.networks import TINY_ARGUMENTS, make_seeded


def test_same_shape_and_gray_levels_and_empty_slices_stay_empty() -> None:
    volume = random_contours()
    result = translate_contours(volume)
    assert result.shape == volume.shape
    assert result.min() >= 0
    assert result.max() <= 255
    assert not result[[0, 3]].any()
    assert all(result[index].any() for index in (1, 2, 4, 5, 6))


def test_a_volume_without_contours_costs_no_network_call() -> None:
    def network(*_: object) -> torch.Tensor:
        raise AssertionError("the network was called")

    (result,) = make_inferer().translate(torch.zeros(1, 1, 4, 10, 10), network)
    assert not result.gray_levels.any()
    assert result.network_calls == 0
    assert result.choices == [None] * 4


@pytest.mark.slow
def test_same_case_and_seed_alone_in_a_batch_and_reversed() -> None:
    names = ["a", "b", "c"]
    volumes = {name: random_contours(number) for number, name in enumerate(names)}
    together = make_inferer()(as_case(list(volumes.values()), names), make_seeded())
    backward = make_inferer()(as_case(list(volumes.values())[::-1], names[::-1]), make_seeded())
    for position, name in enumerate(names):
        alone = translate_contours(volumes[name], name)
        assert torch.equal(alone, torch.as_tensor(together[position, 0]))
        assert torch.equal(alone, torch.as_tensor(backward[2 - position, 0]))


def test_case_and_seed_matter() -> None:
    volume = random_contours()
    assert not torch.equal(translate_contours(volume, "a"), translate_contours(volume, "b"))
    assert not torch.equal(translate_contours(volume, seed=0), translate_contours(volume, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_another_batch_size_differs_by_rounding_only(batch_size: int) -> None:
    torch.testing.assert_close(
        translate_contours(random_contours()),
        translate_contours(random_contours(), batch_size=batch_size),
        atol=1e-2,
        rtol=0,
    )


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_batched_selection_equals_a_plain_sequential_loop(solver: str) -> None:
    """Slice after slice, candidate after candidate, each in a batch of its own, padded to the same size."""
    volume, network = random_contours(shape=(5, 12, 8)), make_seeded()
    scheduler = (
        SCHEDULER
        if solver == "ddim"
        else DDPMScheduler(num_train_timesteps=4, prediction_type="v_prediction")
    )
    translation = make_inferer(scheduler=scheduler, margin_px=99, solver=solver)
    batched = torch.as_tensor(translation(as_case([volume], ["a"]), network)[0, 0])

    def draw(index: int, round_: int) -> torch.Tensor:
        images = []
        for candidate in range(RULES.candidates):
            contour = volume[index][None, None].expand(4, -1, -1, -1)
            images.append(
                denoiser_of(translation, network)(contour, [("a", index, round_, candidate)] * 4)[0]
            )
        return torch.stack(images)

    with torch.no_grad():
        for choice, image in choose(draw, [1, 2, 4], RULES):
            assert torch.equal(batched[choice.slice_index], image)


def test_solve_is_ddim_on_the_candidates_own_noise() -> None:
    network, contour = make_seeded(), random_contours()[1][:20, :16]
    keys = [("case", 1, 0, number) for number in range(4)]
    noise = NoiseStream([CandidateKey(0, *key) for key in keys], (1, 20, 16)).draw()
    stacked = contour[None, None].expand(4, -1, -1, -1)

    def denoise(x: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        output = network(torch.cat([x, stacked], 1), torch.full((4,), level.timestep))
        return clean_image(output, x, level.alpha_bar, "v_prediction")

    with torch.no_grad():
        expected = ddim(denoise, noise, even_schedule(SCHEDULER.alphas_cumprod, 3))
        got = denoiser_of(make_inferer(), network)(stacked, keys)
    assert torch.equal(got, ((expected[:, 0] + 1) * 127.5).clamp(0, 255))


def test_calls_are_full_batches_and_no_more_than_needed() -> None:
    sizes: list[int] = []
    network = make_seeded()

    def counting(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return network(x, t)

    counting.size_divisor = network.size_divisor  # type: ignore[attr-defined]
    rules = SelectionRules(candidates=2, max_rounds=1)
    (result,) = make_inferer(rules=rules).translate(as_case([random_contours()], ["a"]), counting)
    assert set(sizes) == {4}
    assert result.network_calls == 3  # 5 slices of 2 candidates in batches of 4
    assert len(sizes) == 3 * 3


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_axis(axis: int) -> None:
    volume = random_contours()
    moved = translate_contours(volume.moveaxis(0, axis).contiguous(), slice_axis=axis)
    assert torch.equal(moved.moveaxis(axis, 0), translate_contours(volume))


def test_wrong_shape_is_explained() -> None:
    with pytest.raises(
        ValueError, match=r"inputs must be \(B, 1, H, W, D\), got \(1, 4, 10, 10\); add Ensure"
    ):
        make_inferer()(torch.zeros(1, 4, 10, 10), make_seeded())


def test_the_result_has_the_metadata_of_its_input() -> None:
    batch = as_case([random_contours(), random_contours(1)], ["a", "b"])
    results = make_inferer().translate(batch, make_seeded())
    assert [result.case for result in results] == ["a", "b"]
    assert [result.gray_levels.meta["filename_or_obj"] for result in results] == [
        "folder/a.nii.gz",
        "folder/b.nii.gz",
    ]
    stacked = make_inferer()(batch, make_seeded())
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
    translation = make_inferer(batch_size=8)
    first = translation.translate(random_contours()[None, None], small_device)
    assert sizes.count(8) == sizes.count(4) == 1
    second = translation.translate(random_contours()[None, None], small_device)
    assert sizes.count(8) == sizes.count(4) == 1
    assert first[0].batch_size == second[0].batch_size == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "euler"}, "solver must be one of"),
        ({"eta": -1.0}, "expected eta to be a number from 0 to 1"),
        ({"num_inference_steps": 0}, "expected num_inference_steps to be a whole number from 1"),
        ({"batch_size": 0}, "expected batch_size to be a whole number from 1"),
        ({"acceleration": "trace"}, "acceleration must be one of"),
        ({"noise_length_mm": -1.0}, "expected noise_length_mm to be a number from 0"),
        ({"seed": -1}, "expected seed to be a whole number from 0"),
        ({"margin_px": 2.5}, "expected margin_px to be a whole number from 0 to 4096, got 2.5"),
        ({"slice_axis": 3}, "expected slice_axis to be a whole number from 0 to 2"),
        ({"unconditional": "no"}, "expected unconditional to be true or false, got 'no'"),
        ({"amp": 1}, "expected amp to be true or false, got 1"),
        (
            {"keep_spread": True, "rules": SelectionRules(1, 1)},
            "an uncertainty map requires 2 candidates",
        ),
    ],
)
def test_inferers_validate_arguments_before_any_work(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_inferer(**settings)


def two_contrasts() -> ContourUNet:
    torch.manual_seed(0)
    network = ContourUNet(**TINY_ARGUMENTS, contrasts=("t1", "t2"))
    torch.nn.init.normal_(network.out[2].conv.weight, std=0.05)
    return network.eval()


def gray_levels(
    volumes: list[MetaTensor], network: object, **options: object
) -> list[torch.Tensor]:
    results = make_inferer().translate(volumes, network, **options)  # type: ignore[arg-type]
    return [torch.as_tensor(result.gray_levels) for result in results]


def test_a_contrast_is_the_same_alone_and_beside_another() -> None:
    network, volumes = two_contrasts(), split_batch(as_case([random_contours()] * 2, ["a", "a"]))
    first, second = gray_levels(volumes, network, class_labels=[0, 1])
    assert not torch.equal(first, second)
    assert torch.equal(gray_levels(volumes[:1], network)[0], first)
    assert torch.equal(gray_levels(volumes[:1], network, class_labels=[None])[0], first)
    assert torch.equal(gray_levels(volumes[:1], network, class_labels=[1])[0], second)
    by_call = make_inferer()(as_case([random_contours()], ["a"]), network, class_labels=[1])
    assert torch.equal(torch.as_tensor(by_call[0]), second)


def test_contrasts_beyond_the_first_have_noise_of_their_own() -> None:
    """A network that paints its noise, whatever the contrast."""

    def network(x: torch.Tensor, t: torch.Tensor, **labels: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x[:, :1])

    volumes = split_batch(as_case([random_contours()] * 3, ["a", "a", "a"]))
    images = gray_levels(volumes, network, class_labels=[None, 0, 1])
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_a_network_is_given_the_label_of_every_candidate_and_none_without() -> None:
    seen: list[dict[str, list[int]]] = []

    def network(x: torch.Tensor, t: torch.Tensor, **labels: torch.Tensor) -> torch.Tensor:
        seen.append({name: values.tolist() for name, values in labels.items()})
        return torch.zeros_like(x[:, :1])

    volumes = split_batch(as_case([random_contours()], ["a"]))
    gray_levels(volumes, network)
    assert seen
    assert all(labels == {} for labels in seen)
    seen.clear()
    gray_levels(volumes, network, class_labels=[3])
    assert all(labels == {"class_labels": [3] * 4} for labels in seen)


@pytest.mark.parametrize("options", [{"class_labels": [0]}, {"names": ["a", "b", "c"]}])
def test_labels_and_names_are_one_for_each_volume(options: dict[str, list]) -> None:
    with pytest.raises(ValueError, match="a class label and a name for each of 2 volumes, got"):
        make_inferer().translate(
            as_case([random_contours()] * 2, ["a", "b"]), make_seeded(), **options
        )


class Brighten(Painter):
    """A method that sees the image, whose contours are its bright pixels."""

    def contours_of(self, volume: torch.Tensor) -> torch.Tensor:
        return (volume > 100).float()

    def paint(
        self, volumes: Sequence[VolumeState], network: torch.nn.Module
    ) -> Iterator[PaintedSlice]:
        for volume in volumes:
            for choice, image in choose(
                lambda index, _: network(volume.framed[index][None]),  # noqa: B023
                volume.indices,
                SelectionRules(1, 1),
            ):
                yield PaintedSlice(volume, choice, image)


def test_a_painter_may_see_the_image_in_the_frame_around_its_contours() -> None:
    image = torch.full((1, 4, 20, 24), 50.0)
    image[0, 1:3, 6:10, 8:14] = 200
    inferer = VolumeInferer(Brighten(), margin_px=2, progress=False)
    (result,) = inferer.translate([image], lambda x: x + 10)  # type: ignore[arg-type]
    expected = torch.zeros(4, 20, 24)
    expected[1:3, 4:12, 6:16] = image[0, 1:3, 4:12, 6:16] + 10
    assert torch.equal(result.gray_levels[0], expected)
    assert torch.equal(result.contours, (image[0] > 100).float())
