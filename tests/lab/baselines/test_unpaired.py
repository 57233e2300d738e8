# SPDX-License-Identifier: Apache-2.0
"""CT and MR are drawn independently, and repeatably."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data.utils import set_rnd

from contourdiff.training import SliceDataset
from contourdiff_lab.baselines.unpaired import UnpairedDataset, ct_cases
from helpers.volumes import make_dataset


def numbered(count: int, first: int) -> list[dict[str, torch.Tensor]]:
    return [
        {"image": torch.full((1, 2, 2), float(first + number)), "label": torch.ones(1, 2, 2)}
        for number in range(count)
    ]


def values(dataset: UnpairedDataset, key: str, rounds: int = 5) -> list[float]:
    return [float(dataset[item][key].mean()) for _ in range(rounds) for item in range(len(dataset))]


def test_every_mr_meets_every_ct() -> None:
    dataset = UnpairedDataset(numbered(2, 0), numbered(3, 10))
    dataset.set_random_state(0)
    assert len(dataset) == 2
    pairs = {
        (ct, mr) for ct in (0, 1) for mr in [float(dataset[ct]["mr"].mean()) for _ in range(60)]
    }
    assert pairs == {(ct, mr) for ct in (0, 1) for mr in (10, 11, 12)}
    assert set(dataset[0]) == {"ct", "ct_label", "mr", "mr_label"}


def test_a_seed_repeats_the_draws() -> None:
    dataset = UnpairedDataset(numbered(4, 0), numbered(9, 10))
    draws = []
    for seed in (1, 1, 2):
        set_rnd(dataset, seed=seed)
        draws.append(values(dataset, "mr"))
    assert draws[0] == draws[1] != draws[2]
    assert values(dataset, "ct", 1) == [0, 1, 2, 3]


def stack(first: int, count: int) -> dict[str, torch.Tensor]:
    """A volume whose slice ``i`` has the gray level ``first + i``."""
    levels = first + torch.arange(count, dtype=torch.float32)
    return {"image": levels.view(1, count, 1, 1).expand(1, count, 2, 2)}


def test_slices_are_paired_by_their_relative_position_if_asked() -> None:
    """A CT of 4 slices, MR of 8 and of 2: the middle of each meets the middle."""
    ct = SliceDataset([stack(1, 4)])
    mr = SliceDataset([stack(10, 8), stack(30, 2)])
    dataset = UnpairedDataset(ct, mr, by_position=True)
    dataset.set_random_state(0)
    met: dict[int, set[float]] = {number: set() for number in range(4)}
    for _ in range(40):
        for number in met:
            met[number].add(float(dataset[number]["mr"].mean()))
    assert met[0] in ({10, 30}, {11, 30})
    assert met[3] in ({16, 31}, {17, 31})
    assert met[1] in ({12, 30}, {13, 30})


def test_a_side_without_slices_is_refused() -> None:
    empty = SliceDataset([], allow_empty=True)
    with pytest.raises(ValueError, match="expected slices of CT and of MR, got 2 and 0"):
        UnpairedDataset(numbered(2, 0), empty)  # type: ignore[arg-type]


def test_ct_are_checked_and_converted_as_for_a_translation(tmp_path: Path) -> None:
    """An NRRD beside NIfTI files, one of them damaged, one without a label."""
    ct = make_dataset(tmp_path / "ct")
    (ct / "a.nii.gz").write_bytes(b"damaged")
    (ct / "labels" / "b.nii.gz").unlink()
    volume = sitk.GetImageFromArray(np.asarray(nib.load(ct / "c.nii.gz").dataobj).transpose())
    sitk.WriteImage(volume, str(ct / "d.nrrd"))
    names = [Path(item["image"]).name for item in ct_cases(ct, tmp_path / "out")]
    assert names == ["b.nii.gz", "c.nii.gz", "d.nii.gz"]
    (labelled,) = ct_cases(ct, tmp_path / "out", ("image", "label"))
    assert labelled == {"image": str(ct / "c.nii.gz"), "label": str(ct / "labels" / "c.nii.gz")}


def test_a_folder_without_labels_is_refused_where_labels_are_needed(tmp_path: Path) -> None:
    ct = make_dataset(tmp_path / "ct", ("a",))
    (ct / "labels" / "a.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"expected labels/<case>.nii.gz beside <case>.nii.gz"):
        ct_cases(ct, tmp_path / "out", ("image", "label"))
    with pytest.raises(FileNotFoundError, match="expected a folder of CT"):
        ct_cases(tmp_path / "none", tmp_path / "out")
