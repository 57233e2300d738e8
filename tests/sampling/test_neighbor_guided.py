# SPDX-License-Identifier: Apache-2.0
"""Neighbor-guided translation: what it is given, that cases do not touch each other, and that it calms the slices."""

from __future__ import annotations

from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.schedulers import DDPMScheduler

from contourdiff.inference.inferer import ContourTranslationInferer
from contourdiff.inference.volume_state import VolumeResult
from contourdiff.sampling.neighbor_guided import EMPTY, Walk, first_condition, guided
from contourdiff.sampling.selection import SelectionRules, walk_order
from contourdiff.training.inferer import ContourPrepareBatch
from contourdiff.training.slice_dataset import SliceDataset
from contourdiff.weights import load_weights
from helpers import (
    CONFIGS,
    GUIDED_NETWORK,
    SCHEDULER,
    as_case,
    contours,
    make_guided_network,
    make_mr,
    settings,
    write_nifti,
)

RULES = SelectionRules(candidates=3, max_rounds=2, mean_threshold=120.0, distance_threshold=900.0)


def inferer(**options: object) -> ContourTranslationInferer:
    common = {"rules": RULES, "num_inference_steps": 3, "batch_size": 4, "margin_px": 2, "progress": False}
    return ContourTranslationInferer(SCHEDULER, neighbor_guided=True, **{**common, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("start", ["first", "fullest"])
def test_every_slice_is_given_its_neighbors_translation(start: str) -> None:
    """Each call of the network sees, in its third channel, what was chosen for the neighbor that the record names."""
    records: list[VolumeResult] = []
    seen: list[torch.Tensor] = []
    network = make_guided_network()

    def watching(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x[:, 1:].clone())
        return network(x, t)

    volume = contours()
    watching.size_divisor = network.size_divisor  # type: ignore[attr-defined]
    inferer(on_volume=records.append, walk_start=start)(as_case([volume], ["a"]), watching)  # type: ignore[arg-type]
    made = records[0].translation
    for index, choice in enumerate(records[0].choices):
        if choice is None or choice.neighbor is None:
            continue
        assert abs(choice.neighbor - index) == 1
        rows, columns = records[0].box[1], records[0].box[2]
        wanted = made[choice.neighbor, rows, columns] / 127.5 - 1
        contour = volume[index, rows, columns]
        height, width = contour.shape
        given = [
            item[1, :height, :width]
            for batch in seen
            for item in batch
            if torch.equal(item[0, :height, :width], contour)
        ]
        assert given
        assert all(torch.allclose(neighbor, wanted, atol=1e-5) for neighbor in given)
    starts = [choice for choice in records[0].choices if choice is not None and choice.neighbor is None]
    assert len(starts) == 2  # a run of two slices and one of three
    assert any(bool((item[1] == EMPTY).all()) for batch in seen for item in batch)


def test_single_samples_after_the_best_first_one() -> None:
    records: list[VolumeResult] = []
    inferer(on_volume=records.append)(as_case([contours()], ["a"]), make_guided_network())
    for choice in records[0].choices:
        if choice is not None and choice.neighbor is not None:
            assert (choice.round, choice.candidate, choice.rounds) == (0, 0, 1)
            assert choice.reason.startswith("single sample")


def test_cases_walk_side_by_side_without_touching_each_other() -> None:
    names = ["a", "b", "c"]
    volumes = [contours(number) for number in range(3)]
    calls: list[VolumeResult] = []
    together = inferer(on_volume=calls.append)(as_case(volumes, names), make_guided_network())
    alone_calls = 0
    for position, name in enumerate(names):
        records: list[VolumeResult] = []
        alone = inferer(on_volume=records.append)(as_case([volumes[position]], [name]), make_guided_network())
        alone_calls += records[0].network_calls
        assert torch.equal(torch.as_tensor(together[position]), torch.as_tensor(alone[0]))
    assert calls[0].network_calls < alone_calls


def test_frames_of_different_sizes_do_not_share_a_batch() -> None:
    sizes: list[tuple[int, ...]] = []

    def denoise(conditions: torch.Tensor, items: object) -> torch.Tensor:
        sizes.append(tuple(conditions.shape))
        return torch.zeros(len(conditions), *conditions.shape[2:])

    order = walk_order([0, 1, 2])
    walks = [Walk("a", torch.ones(3, 4, 4), order), Walk("b", torch.ones(3, 6, 4), order)]
    steps = list(guided(walks, denoise, 8, SelectionRules(candidates=2)))
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
        (item["image"].mean().item(), item["neighbor"].mean().item()) for item in SliceDataset([volume], neighbors=True)
    ]  # type: ignore[attr-defined]
    assert [here for here, _ in pairs] == [1, 2, 3, 4, 5]
    assert all(abs(here - beside) == 1 for here, beside in pairs)
    assert {beside - here for here, beside in pairs[1:-1]} == {-1, 1}


def test_single_slices_are_refused_before_training(tmp_path: Path) -> None:
    make_mr(tmp_path / "mr")
    with pytest.raises(RuntimeError) as raised:
        monai.bundle.run(
            **settings(tmp_path / "mr", tmp_path / "out", neighbor_guided=True, network_def=GUIDED_NETWORK)  # type: ignore[arg-type]
        )
    assert "got 2 single slices among 4 images; give volumes, or set neighbor_guided" in str(raised.value.__cause__)
    assert not (tmp_path / "out" / "model.pt").exists()


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_neighbors_are_given_with_their_probability(probability: float) -> None:
    torch.manual_seed(0)
    prepare = ContourPrepareBatch(DDPMScheduler(num_train_timesteps=10), neighbor_probability=probability)
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


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="a single candidate a slice, which has no spread; expected no uncertainty"):
        inferer(keep_spread=True)
    with pytest.raises(ValueError, match="walk_start must be one of"):
        inferer(walk_start="middle")


def test_trained_and_translated_end_to_end_it_flickers_less(real_data: Path, tmp_path: Path) -> None:
    """Real adjacent slices: the true ones of two volumes to train on, of a third to translate."""
    import nibabel as nib

    for number in (1, 2, 3):
        image = nib.load(real_data / "mr_lumbar_3d" / f"vb3_{number:02d}.nii.gz")
        canonical = nib.as_closest_canonical(image)
        affine = canonical.affine @ np.diag([4.0, 1, 1, 1])
        write_nifti(
            tmp_path / "mr" / f"v{number}.nii.gz", np.asanyarray(canonical.dataobj)[::4].astype(np.float32), affine
        )
    (tmp_path / "mr" / "index.csv").write_text("file,split\nv1.nii.gz,train\nv2.nii.gz,train\nv3.nii.gz,val\n")
    changes = {
        "neighbor_guided": True,
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
    common = settings(tmp_path / "mr", tmp_path / "out", network_def=GUIDED_NETWORK)
    monai.bundle.run(**{**common, **changes})  # type: ignore[arg-type]
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "cpu.json")])
    parser.update({**common, **changes})
    volume = parser.get_parsed_content("validate#volumes")[0]
    contour = parser.get_parsed_content("contour").transform
    slices = torch.as_tensor(volume["image"]).as_subclass(torch.Tensor).unbind(1)
    given = torch.stack([torch.as_tensor(contour(cut)) for cut in slices], dim=1)
    network = load_weights(parser.get_parsed_content("network_def"), tmp_path / "out" / "model.pt")
    flicker = {}
    for neighbor_guided in (True, False):
        records: list[VolumeResult] = []
        translation = ContourTranslationInferer(
            parser.get_parsed_content("scheduler"),
            rules=SelectionRules(candidates=1, max_rounds=1),
            num_inference_steps=10,
            neighbor_guided=neighbor_guided,
            progress=False,
            on_volume=records.append,
        )
        seen = (
            network if neighbor_guided else lambda x, t: network(torch.cat([x, torch.full_like(x[:, :1], EMPTY)], 1), t)
        )
        if not neighbor_guided:
            seen.size_divisor = 32  # the same frame as that of guided translation
        translation(given[None].float(), seen)  # type: ignore[arg-type]
        distances = [c.neighbor_distance for c in records[0].choices if c and c.neighbor_distance is not None]
        flicker[neighbor_guided] = float(np.mean(distances))
    assert flicker[True] < flicker[False]
