# SPDX-License-Identifier: Apache-2.0
"""Neighbor-guided translation: what it is given, that cases do not touch each other, and that it calms the slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.schedulers import DDPMScheduler

from contourdiff.inference import IndependentCandidates, NeighborGuided, Painter, VolumeInferer
from contourdiff.sampling import Sampler, SelectionRules
from contourdiff.sampling.neighbor_guided import (
    EMPTY,
    GuidedVolume,
    first_condition,
    guided_slices,
)
from contourdiff.training.inferer import ContourPrepareBatch
from contourdiff.training.slice_dataset import SliceDataset
from contourdiff.weights import load_weights
from helpers.inferers import as_case, make_inferer, random_contours
from helpers.networks import GUIDED_NETWORK, make_guided_network
from helpers.paths import CONFIGS
from helpers.runs import tiny_training_settings
from helpers.volumes import make_mr, write_nifti

GUIDED_CONFIGS = [
    str(CONFIGS / f"{name}.json") for name in ("train", "cpu", "train_neighbor_guided")
]
RULES = SelectionRules(candidates=3, max_rounds=2, mean_threshold=120.0, distance_threshold=900.0)


def guided(**given: Any) -> Any:
    return make_inferer(NeighborGuided, rules=RULES, **given)


def test_every_slice_is_given_its_neighbors_translation() -> None:
    """Each call of the network has, in its third channel, the translation of the neighbor that the choice names."""
    seen: list[torch.Tensor] = []
    network = make_guided_network()

    def watching(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x[:, 1:].clone())
        return network(x, t)

    volume = random_contours()
    watching.size_divisor = network.size_divisor  # type: ignore[attr-defined]
    (result,) = guided().translate(as_case([volume], ["a"]), watching)
    rows, columns = result.box[1], result.box[2]
    for index, choice in enumerate(result.choices):
        if choice is None or choice.neighbor is None:
            continue
        assert choice.neighbor == index - 1
        expected = result.gray_levels[0].as_tensor()[choice.neighbor, rows, columns] / 127.5 - 1
        contour = volume[index, rows, columns]
        height, width = contour.shape
        items = [item[:, :height, :width] for batch in seen for item in batch]
        given = [item[1] for item in items if torch.equal(item[0], contour)]
        assert given
        assert all(torch.allclose(neighbor, expected, atol=1e-5) for neighbor in given)
    starts = [choice for choice in result.choices if choice is not None and choice.neighbor is None]
    assert len(starts) == 2  # a run of two slices and one of three
    assert any(bool((item[1] == EMPTY).all()) for batch in seen for item in batch)


def test_slices_start_from_independent_noise() -> None:
    """The noise that the network is given for adjacent slices is uncorrelated: guidance alone ties slices together."""
    volume, network = random_contours(shape=(24, 32, 32)), make_guided_network()
    noise: dict[int, torch.Tensor] = {}

    def watching(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        for item in x:
            (index,) = (
                number for number, contour in enumerate(volume) if torch.equal(contour, item[1])
            )
            noise.setdefault(index, item[0].clone())  # of the first candidate
        return network(x, t)

    guided(num_inference_steps=1).translate(as_case([volume], ["a"]), watching)
    assert len(noise) == 22
    pairs = [
        torch.stack([noise[index], noise[index + 1]]).flatten(1)
        for index in noise
        if index + 1 in noise
    ]
    correlations = [float(torch.corrcoef(pair)[0, 1]) for pair in pairs]
    assert len(correlations) == 20
    assert abs(np.mean(correlations)) < 5 / (20 * 32 * 32) ** 0.5


def test_single_samples_after_the_best_first_one() -> None:
    (result,) = guided().translate(as_case([random_contours()], ["a"]), make_guided_network())
    for choice in result.choices:
        if choice is not None and choice.neighbor is not None:
            assert (choice.round, choice.candidate, choice.rounds) == (0, 0, 1)
            assert choice.reason.startswith("single sample")


def test_cases_run_side_by_side_and_do_not_depend_on_each_other() -> None:
    names = ["a", "b", "c"]
    volumes = [random_contours(number) for number in range(3)]
    together = guided().translate(as_case(volumes, names), make_guided_network())
    alone_calls = 0
    for position, name in enumerate(names):
        (alone,) = guided().translate(as_case([volumes[position]], [name]), make_guided_network())
        alone_calls += alone.network_calls
        assert torch.equal(
            together[position].gray_levels.as_tensor(), alone.gray_levels.as_tensor()
        )
    assert together[0].network_calls < alone_calls


def test_frames_of_different_sizes_do_not_share_a_batch() -> None:
    sizes: list[tuple[int, ...]] = []

    def denoise(conditions: torch.Tensor, places: object) -> torch.Tensor:
        sizes.append(tuple(conditions.shape))
        return torch.zeros(len(conditions), *conditions.shape[2:])

    volumes = [
        GuidedVolume("a", torch.ones(3, 4, 4), [0, 1, 2]),
        GuidedVolume("b", torch.ones(3, 6, 4), [0, 1, 2]),
    ]
    steps = list(guided_slices(volumes, denoise, 8, SelectionRules(candidates=2)))
    assert [(number, choice.slice_index) for number, choice, _ in steps] == [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
        (0, 2),
        (1, 2),
    ]
    assert sizes == [(2, 2, 4, 4), (2, 2, 6, 4)] + [(1, 2, 4, 4), (1, 2, 6, 4)] * 2


def test_dataset_gives_adjacent_slices() -> None:
    volume = {"image": torch.arange(1.0, 6.0).view(1, 5, 1, 1).expand(1, 5, 8, 8)}
    pairs = [
        (item["image"].mean().item(), item["neighbor"].mean().item())
        for item in SliceDataset([volume], neighbors=True)
    ]  # type: ignore[attr-defined]
    assert [here for here, _ in pairs] == [1, 2, 3, 4, 5]
    assert all(abs(here - beside) == 1 for here, beside in pairs)
    assert {beside - here for here, beside in pairs[1:-1]} == {-1, 1}


def test_single_slices_are_refused_before_training(tmp_path: Path) -> None:
    make_mr(tmp_path / "mr")
    with pytest.raises(RuntimeError) as raised:
        monai.bundle.run(
            **tiny_training_settings(
                tmp_path / "mr",
                tmp_path / "out",
                config_file=GUIDED_CONFIGS,
                network_def=GUIDED_NETWORK,
            )
        )
    assert "got 2 single slices among 4 images; pass volumes, or set neighbors" in str(
        raised.value.__cause__
    )
    assert not (tmp_path / "out" / "model.pt").exists()


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_neighbors_are_given_with_their_probability(probability: float) -> None:
    torch.manual_seed(0)
    prepare = ContourPrepareBatch(
        DDPMScheduler(num_train_timesteps=10), neighbor_probability=probability
    )
    batch = {key: torch.full((2000, 1, 2, 2), 0.5) for key in ("image", "contour", "neighbor")}
    condition = prepare(batch)[3]["condition"]
    assert condition.shape == (2000, 2, 2, 2)
    given = (condition[:, 1] == 0.5).all(dim=(1, 2))
    assert bool(((condition[:, 1] == EMPTY).all(dim=(1, 2)) | given).all())
    assert given.float().mean() == pytest.approx(probability, abs=0.03)


def test_first_condition_has_an_empty_neighbor() -> None:
    contour = torch.ones(1, 3, 3)
    assert first_condition({"contour": contour}).shape == (1, 3, 3)
    condition = first_condition({"contour": contour, "neighbor": contour})
    assert torch.equal(condition, torch.cat([contour, torch.full_like(contour, EMPTY)]))


@pytest.mark.slow
def test_trained_and_translated_end_to_end_it_flickers_less(
    real_data: Path, tmp_path: Path
) -> None:
    """Real adjacent slices: the true ones of two volumes to train on, of a third to translate."""
    import nibabel as nib

    for number in (1, 2, 3):
        image = nib.load(real_data / "mr_lumbar_3d" / f"vb3_{number:02d}.nii.gz")
        canonical = nib.as_closest_canonical(image)
        affine = canonical.affine @ np.diag([4.0, 1, 1, 1])
        write_nifti(
            tmp_path / "mr" / f"v{number}.nii.gz",
            np.asanyarray(canonical.dataobj)[::4].astype(np.float32),
            affine,
        )
    (tmp_path / "mr" / "index.csv").write_text(
        "file,split\nv1.nii.gz,train\nv2.nii.gz,train\nv3.nii.gz,val\n"
    )
    changes = {
        "config_file": GUIDED_CONFIGS,
        "neighbor_probability": 0.5,
        "spacing_mm": 7.0,
        "batch_size": 8,
        "epoch_length": 40,
        "max_epochs": 4,
        "val_interval": 4,
        "learning_rate": 2e-3,
        "warmup_steps": 20,
        "ema_momentum": 0.05,
        "timestep_draws": 1,
        "random_high_threshold": [40.0, 40.0],
        "remap_probability": 0.0,
    }
    common = tiny_training_settings(tmp_path / "mr", tmp_path / "out", network_def=GUIDED_NETWORK)
    monai.bundle.run(**{**common, **changes})  # type: ignore[arg-type]
    parser = ConfigParser()
    parser.read_config(GUIDED_CONFIGS)
    parser.update(
        {
            name: value
            for name, value in (common | changes).items()
            if name not in ("config_file", "logging_file")
        }
    )
    volume = parser.get_parsed_content("validate#volumes")[0]
    contour = parser.get_parsed_content("contour").transform
    slices = torch.as_tensor(volume["image"]).as_subclass(torch.Tensor).unbind(1)
    given = torch.stack([torch.as_tensor(contour(cut)) for cut in slices], dim=1)
    network = load_weights(parser.get_parsed_content("network_def"), tmp_path / "out" / "model.pt")
    sampler = Sampler(parser.get_parsed_content("scheduler"), num_inference_steps=10)
    rules = SelectionRules(candidates=1, max_rounds=1)

    def flicker(painter: Painter, network: Any) -> float:
        inferer = VolumeInferer(painter, progress=False)
        (result,) = inferer.translate(given[None].float(), network)
        return float(
            np.mean(
                [
                    c.neighbor_distance
                    for c in result.choices
                    if c and c.neighbor_distance is not None
                ]
            )
        )

    def without_neighbor(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return network(torch.cat([x, torch.full_like(x[:, :1], EMPTY)], 1), t)

    without_neighbor.size_divisor = 32  # type: ignore[attr-defined]  # the same frame as that of guided translation
    guided, independent = NeighborGuided(sampler, rules), IndependentCandidates(sampler, rules)
    assert flicker(guided, network) < flicker(independent, without_neighbor)
