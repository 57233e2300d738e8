# SPDX-License-Identifier: Apache-2.0
"""CT slices, each with a random MR slice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable
from torch import Tensor
from torch.utils.data import Dataset

from contourdiff.data.translation_cases import TranslationCases

Slices = Sequence[dict[str, Tensor]]


class UnpairedDataset(Dataset, Randomizable):
    """Item ``i`` has CT slice ``i`` as ``ct`` and a random MR slice as ``mr``, each ``(1, H, W)``.

    Other keys of their items are prefixed: ``label`` of a CT is ``ct_label``.

    Args:
        ct: dataset of dictionaries with an ``image``, such as [`contourdiff.training.slice_dataset.SliceDataset`][];
            its random transforms are seeded with this dataset.
        mr: the same for MR.
        by_position: of a random MR volume take the slice whose relative position in it is nearest to that of the CT
            slice in its own, as MaskGAN does; both datasets are ``SliceDataset`` then. MR of single slices are drawn at
            random.

    Raises:
        ValueError: if ``ct`` or ``mr`` is empty.
    """

    def __init__(self, ct: Slices, mr: Slices, by_position: bool = False) -> None:
        if len(ct) == 0 or len(mr) == 0:
            raise ValueError(
                f"expected slices of CT and of MR, got {len(ct)} and {len(mr)}; check both folders"
            )
        self.ct = ct
        self.mr = mr
        self.by_position = by_position

    def __len__(self) -> int:
        """Return the number of CT slices."""
        return len(self.ct)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        """CT slice ``item`` and a random MR slice."""
        mr_item = int(self.R.randint(len(self.mr)))
        if self.by_position:
            mr_item = self._nearest(item, mr_item)
        return {**_prefixed("ct", self.ct[item]), **_prefixed("mr", self.mr[mr_item])}

    def _nearest(self, ct_item: int, mr_item: int) -> int:
        """Of the volume of an MR slice, the slice whose relative position is nearest to that of a CT slice."""
        ct: Any = self.ct
        mr: Any = self.mr
        volumes = np.array([volume for volume, _ in mr.index])
        members = np.flatnonzero(volumes == volumes[mr_item])
        places = np.array(mr.places)[members]
        distances = np.abs(places - ct.places[ct_item])
        return int(members[distances.argmin()])

    def set_random_state(self, seed: int | None = None, state: object = None) -> UnpairedDataset:
        """Seed the draws and the random transforms of both datasets."""
        super().set_random_state(seed, state)  # type: ignore[arg-type]
        for dataset in (self.ct, self.mr):
            if isinstance(dataset, Randomizable):
                dataset.set_random_state(seed=int(self.R.randint(2**31)))
        return self


def _prefixed(side: str, item: dict[str, Tensor]) -> dict[str, Tensor]:
    prefixed = {}
    for key, value in item.items():
        name = side if key == "image" else f"{side}_{key}"
        prefixed[name] = torch.as_tensor(value).as_subclass(torch.Tensor)
    return prefixed


def ct_cases(
    dataset_dir: str | Path, output_dir: str | Path, keys: Sequence[str] = ("image",)
) -> list[dict[str, str]]:
    """CT volumes to train on, ``[{"image": path}, ...]``, checked and converted as those of a translation.

    Args:
        dataset_dir: folder of CT as for a translation.
        output_dir: files other than NIfTI are converted to ``<output_dir>/ct``.
        keys: with ``"label"`` among them, items have their label, too, and cases without one are left out.

    Raises:
        FileNotFoundError: if there is no folder.
        ValueError: if no case is left.
    """
    if not Path(dataset_dir).is_dir():
        raise FileNotFoundError(
            f"expected a folder of CT at {dataset_dir}, found none; pass --ct_dir"
        )
    cases = TranslationCases(dataset_dir, output_dir)
    cases.check()
    with_label = "label" in keys
    items = []
    for case in cases.items:
        if not with_label:
            items.append({"image": case["image"]})
        elif case["label"] is not None:
            items.append({"image": case["image"], "label": case["label"]})
    if not items:
        expected = "volumes that pass the checks"
        if with_label:
            expected = "labels/<case>.nii.gz beside <case>.nii.gz"
        raise ValueError(
            f"expected {expected} in {dataset_dir}, found none; see the messages above"
        )
    return items
