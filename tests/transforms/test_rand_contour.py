# SPDX-License-Identifier: Apache-2.0
"""Random contours: fragments are lost and repeated as asked, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import label
from skimage.data import camera
from skimage.transform import resize

from contourdiff.contours import contour_of
from contourdiff.transforms import RandContour, RandContourd
from contourdiff.transforms.contour_faults import EIGHT_NEIGHBORS, contour_fragments

IMAGE = (255 * resize(camera(), (96, 80), anti_aliasing=True))[None].astype(np.float32)
PLAIN = contour_of(IMAGE[0], sigma_px=1.0, low_threshold=20, high_threshold=40)


def draw(seed: int = 0, **settings: object) -> np.ndarray:
    return np.asarray(RandContour(**settings).set_random_state(seed)(IMAGE))[0]  # type: ignore[arg-type]


def test_fragments_are_a_partition_into_connected_pieces_within_cells() -> None:
    fragments, count = contour_fragments(PLAIN, 8, (3, 5))
    np.testing.assert_array_equal(fragments > 0, PLAIN > 0)
    assert set(np.unique(fragments)) == set(range(count + 1))
    rows, columns = np.nonzero(fragments)
    pieces = label(PLAIN, EIGHT_NEIGHBORS)[0]
    for number in range(1, count + 1):
        mine = fragments[rows, columns] == number
        assert len(np.unique((rows[mine] + 3) // 8)) == 1
        assert len(np.unique((columns[mine] + 5) // 8)) == 1
        assert len(np.unique(pieces[rows[mine], columns[mine]])) == 1


@pytest.mark.parametrize("contour", [np.zeros((5, 7)), np.ones((5, 7))])
def test_fragments_of_nothing_and_of_everything(contour: np.ndarray) -> None:
    fragments, count = contour_fragments(contour, 4)
    assert count == (0 if not contour.any() else 4)
    assert fragments.max() == count


def test_a_random_contour_without_randomness_is_the_contour() -> None:
    np.testing.assert_array_equal(draw(), PLAIN)


def test_dropout_only_removes_and_clutter_only_adds() -> None:
    lost, added = draw(dropout=0.5), draw(clutter=0.5)
    assert (lost <= PLAIN).all()
    assert (added >= PLAIN).all()
    assert 0 < lost.sum() < PLAIN.sum() < added.sum()


def test_dropout_is_uniform_up_to_the_given_share() -> None:
    kept = np.array([draw(seed, dropout=0.6).sum() / PLAIN.sum() for seed in range(200)])
    assert abs(kept.mean() - 0.7) < 0.04
    assert kept.min() < 0.5
    assert kept.max() > 0.95


def test_threshold_moves_density_between_its_ends() -> None:
    sparse = contour_of(IMAGE[0], sigma_px=1.0, low_threshold=40, high_threshold=80).sum()
    dense = contour_of(IMAGE[0], sigma_px=1.0, low_threshold=10, high_threshold=20).sum()
    sums = [draw(seed, high_threshold=(20, 80)).sum() for seed in range(30)]
    assert sparse <= min(sums) < max(sums) <= dense
    assert len(set(sums)) > 10


def test_same_seed_same_contour_and_dictionary_equals_array() -> None:
    settings = {"sigma_px": (0.8, 1.4), "high_threshold": (28, 56), "dropout": 0.2, "clutter": 0.05}
    first, again, other = draw(3, **settings), draw(3, **settings), draw(4, **settings)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    data = RandContourd("image", output_keys="contour", **settings).set_random_state(3)(
        {"image": torch.as_tensor(IMAGE)}
    )  # type: ignore[arg-type]
    np.testing.assert_array_equal(data["contour"][0], first)
    np.testing.assert_array_equal(data["image"], IMAGE)


def test_a_random_contour_of_a_metatensor_keeps_its_metadata() -> None:
    image = MetaTensor(torch.as_tensor(IMAGE), meta={"filename_or_obj": "a.nii.gz"})
    contour = RandContour(dropout=0.2)(image)
    assert isinstance(contour, MetaTensor)
    assert contour.dtype == torch.float32
    assert contour.meta["filename_or_obj"] == "a.nii.gz"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.2}, "expected dropout to be"),
        ({"clutter": -0.1}, "expected clutter to be"),
        ({"sigma_px": (2.0, 1.0)}, "sigma_px must be two numbers"),
        ({"high_threshold": (0.0, 40.0)}, "high_threshold must be two numbers"),
        ({"cell_px": 0}, "expected cell_px to be"),
    ],
)
def test_impossible_settings_of_a_random_contour_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandContour(**settings)


def test_a_random_contour_of_a_volume_is_refused() -> None:
    with pytest.raises(ValueError, match="cut volumes into slices"):
        RandContour()(np.zeros((1, 4, 8, 8), dtype=np.float32))
