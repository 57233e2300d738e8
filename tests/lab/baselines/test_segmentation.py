# SPDX-License-Identifier: Apache-2.0
"""The losses of SynSeg-Net and of CyCADA's cycle, and SynSeg-Net on two domains."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from monai.transforms import Compose, Lambdad
from torch import Tensor, nn

from contourdiff.weights import load_weights
from contourdiff_lab.baselines.cycle import CycleBatch
from contourdiff_lab.baselines.segmentation import (
    SegmentationTerm,
    SemanticConsistencyTerm,
    TranslateSlice,
    intensity_augmentation,
    segmentation_network,
)
from helpers.paths import CONFIGS, LABEL_MAP

LOSS = DiceCELoss(to_onehot_y=True, softmax=True)


class Threshold(nn.Module):
    """Scores (0, slope * (x - 1/2)): class 1 above the middle of [0, 1]."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, image: Tensor) -> Tensor:
        above = self.slope * (image - 0.5)
        return torch.cat([torch.zeros_like(above), above], dim=1)


def cross_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores, classes[:, 0].long())


def batch_of(**images: Tensor) -> CycleBatch:
    names = ("ct", "mr", "fake_mr", "fake_ct", "cycled_ct", "cycled_mr")
    return CycleBatch(**({name: torch.zeros(1, 1, 4, 4) for name in names} | images))


def image(bright: int) -> Tensor:
    """4 x 4 pixels in [-1, 1], the first ``bright`` of them 1."""
    return torch.cat([torch.ones(bright), -torch.ones(16 - bright)]).view(1, 1, 4, 4)


def test_the_segmentation_loss_of_undecided_scores_has_a_closed_form() -> None:
    """Equal probabilities: log 2, and for a class of n of 16 pixels 1 - 2 * n/2 / (n + 8) up to the smoothing."""
    label = (image(4) > 0).float()
    term = SegmentationTerm(Threshold(0.0), LOSS, weight=3.0)
    dice = np.mean([1 - n / (n + 8) for n in (4, 12)])
    assert term(batch_of(ct_label=label)).item() == pytest.approx(
        3 * (math.log(2) + dice), abs=1e-5
    )


def test_the_segmentation_network_sees_gray_levels_from_0_to_1_and_teaches_the_generator() -> None:
    fake = image(4).requires_grad_()
    term = SegmentationTerm(Threshold(8.0), cross_entropy)
    loss = term(batch_of(fake_mr=fake, ct_label=(image(4) > 0).float()))
    assert loss.item() == pytest.approx(
        math.log1p(math.exp(-4)), rel=1e-5
    )  # logit 8 * (1 - 1/2) where it is right
    loss.backward()
    assert fake.grad is not None
    assert (fake.grad * image(4) < 0).all()  # brighter parts, darker background
    assert term.network.slope.grad < 0


def test_the_network_sees_the_augmented_slice_and_the_generator_its_gradient() -> None:
    """Straight-through: the augmentation inverts the slice, and the gradient arrives as if it had not."""
    invert = Compose([Lambdad("image", lambda image: 1 - image)])
    fake = image(4).requires_grad_()
    label = (image(4) > 0).float()
    term = SegmentationTerm(Threshold(8.0), cross_entropy, augmentation=invert)
    loss = term(batch_of(fake_mr=fake, ct_label=label))
    wrong = SegmentationTerm(Threshold(8.0), cross_entropy)
    assert loss.item() == pytest.approx(
        wrong(batch_of(fake_mr=-image(4), ct_label=label)).item(), rel=1e-5
    )
    loss.backward()
    assert fake.grad is not None
    assert (fake.grad * image(4) < 0).all()


def test_the_draws_of_the_augmentation_follow_the_seed_of_torch() -> None:
    augmentation = intensity_augmentation(None, 0.75, 0.5)
    term = SegmentationTerm(Threshold(8.0), cross_entropy, augmentation=augmentation)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(term(batch_of(fake_mr=image(4), ct_label=image(4) > 0)).item())
    assert losses[0] == losses[1] != losses[2]


def test_a_segmentation_term_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="CT with labels"):
        SegmentationTerm(Threshold(1.0), LOSS)(batch_of())


@pytest.mark.parametrize(("sign", "wrong"), [(1, 0), (-1, 16)])
def test_semantic_consistency_compares_each_translation_with_its_source(
    sign: int, wrong: int
) -> None:
    """Cross-entropy of logit 4: log(1 + exp(-4)) where the classes agree, 4 more where they do not."""
    term = SemanticConsistencyTerm(Threshold(8.0), cross_entropy, weight=2.0)
    loss = term(
        batch_of(ct=image(4), mr=image(9), fake_mr=image(4), fake_ct=sign * image(9))
    ).item()
    assert loss == pytest.approx(2 * (2 * math.log1p(math.exp(-4)) + 4 * wrong / 16), rel=1e-5)


def test_semantic_consistency_trains_the_generators_alone() -> None:
    images = {name: image(5).requires_grad_() for name in ("ct", "mr", "fake_mr", "fake_ct")}
    term = SemanticConsistencyTerm(Threshold(8.0), LOSS)
    term(batch_of(**images)).backward()
    assert [images[name].grad is not None for name in images] == [False, False, True, True]
    assert not any(parameter.requires_grad for parameter in term.network.parameters())


@pytest.mark.parametrize("architecture", ["unet", "swin_unetr"])
def test_the_network_is_the_one_that_the_evaluation_loads(
    architecture: str, tmp_path: Path
) -> None:
    torch.save(
        segmentation_network(None, architecture, LABEL_MAP).state_dict(),
        tmp_path / "segmentation.pt",
    )
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "segmentation_train.json"))
    parser.update({"architecture": architecture, "label_map": LABEL_MAP})
    load_weights(parser.get_parsed_content("network_def"), tmp_path / "segmentation.pt")


class Shifted(nn.Module):
    """A "generator" that requires multiples of 4 and adds a quarter of the range."""

    size_divisor = 4

    def forward(self, image: Tensor) -> Tensor:
        assert image.shape[-1] % 4 == image.shape[-2] % 4 == 0
        return image + 0.5


def test_a_slice_of_any_size_is_translated_in_gray_levels() -> None:
    gray = np.random.default_rng(0).uniform(0, 150, (13, 18)).astype(np.float32)
    np.testing.assert_allclose(TranslateSlice(Shifted())(gray), gray + 63.75, atol=1e-3)
