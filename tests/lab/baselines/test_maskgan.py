# SPDX-License-Identifier: Apache-2.0
"""MaskGAN learns a known mapping, and where the body is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn

from contourdiff_lab.baselines.attention import AttentionGenerator
from contourdiff_lab.baselines.cycle import (
    DISCRIMINATORS,
    GENERATORS,
    AdversarialTerm,
    CycleTerm,
    CycleTrainer,
    IdentityTerm,
)
from contourdiff_lab.baselines.handlers import TrainingBudget
from contourdiff_lab.baselines.image_pool import ImagePool
from contourdiff_lab.baselines.masks import MaskTerm, ShapeConsistencyTerm

ITERATIONS = 300


def bodies(count: int, seed: int) -> Tensor:
    """Ellipses of gray level 0.25 in air of 0, with discs of 0.4 and 0.55 in them: ``(count, 1, 32, 32)``."""
    rng = np.random.default_rng(seed)
    pixels = np.mgrid[:32, :32].astype(float).reshape(2, 1, 32, 32)
    center, radius = rng.uniform(13, 19, (2, count, 1, 1)), rng.uniform(9.5, 13.5, (2, count, 1, 1))
    body = (((pixels - center) / radius) ** 2).sum(axis=0) < 1
    image = np.where(body, 0.25, 0.0)
    for gray in (0.4, 0.55):
        middle = center + rng.uniform(-0.4, 0.4, (2, count, 1, 1)) * radius
        image[body & (np.hypot(*(pixels - middle)) < rng.uniform(4, 7, (count, 1, 1)))] = gray
    return torch.tensor(image[:, None], dtype=torch.float32)


def as_mr(gray: Tensor) -> Tensor:
    """The known mapping: the body is brighter in MR by 0.35, and air is air."""
    return torch.where(gray > 0, 0.35 + gray, gray)


def batches(ct: Tensor, mr: Tensor) -> list[dict[str, Tensor]]:
    """Random pairs of both with their masks, two a batch."""
    rng = np.random.default_rng(2)
    drawn = []
    for _ in range(ITERATIONS):
        ct_gray = ct[rng.integers(len(ct), size=2)]
        mr_gray = mr[rng.integers(len(mr), size=2)]
        batch = {
            "ct": 2 * ct_gray - 1,
            "mr": 2 * mr_gray - 1,
            "ct_mask": (ct_gray > 0).float(),
            "mr_mask": (mr_gray > 0).float(),
        }
        drawn.append(batch)
    return drawn


def trainer_of(networks: nn.ModuleDict, loader: list[dict[str, Tensor]]) -> CycleTrainer:
    """All five losses with their default weights, and a rate of 3e-3, for a training of hundreds of iterations."""
    optimizers = {}
    for name, parts in (("generators", GENERATORS), ("discriminators", DISCRIMINATORS)):
        parameters = itertools.chain.from_iterable(networks[part].parameters() for part in parts)
        optimizers[name] = torch.optim.Adam(parameters, 3e-3, betas=(0.5, 0.999))
    terms = {
        "adversarial": AdversarialTerm(networks["ct_discriminator"], networks["mr_discriminator"]),
        "cycle": CycleTerm(),
        "identity": IdentityTerm(networks["ct_to_mr"], networks["mr_to_ct"]),
        "mask": MaskTerm(),
        "shape": ShapeConsistencyTerm(),
    }
    pools = {"ct": ImagePool(), "mr": ImagePool()}
    budget = TrainingBudget(optimizers)
    return CycleTrainer(networks, optimizers, terms, pools, loader, 1, train_handlers=[budget])


@pytest.mark.slow
def test_maskgan_learns_a_known_mapping_and_where_the_body_is() -> None:
    """From a mean error of 0.7, of a range of 2, to less than 0.15."""
    torch.manual_seed(0)
    networks = nn.ModuleDict()
    loader = batches(bodies(256, seed=0), as_mr(bodies(256, seed=1)))
    for name in GENERATORS:
        networks[name] = AttentionGenerator(channels=8, blocks=1, attentions=3)
    for name in DISCRIMINATORS:
        networks[name] = PatchDiscriminator(
            2, channels=8, in_channels=1, num_layers_d=2, norm="INSTANCE"
        )
    trainer_of(networks, loader).run()

    gray = bodies(32, seed=3)
    body = gray > 0
    truth = 2 * as_mr(gray) - 1
    with torch.no_grad():
        translated, beside = networks["ct_to_mr"](2 * gray - 1)
    assert (2 * gray - 1 - truth).abs()[body].mean() > 0.69
    assert (translated - truth).abs()[body].mean() < 0.15
    assert (translated - truth).abs()[~body].mean() < 0.02
    for level in (0.25, 0.4, 0.55):  # each tissue by itself, not only their mean
        tissue = gray.isclose(torch.tensor(level))
        assert (translated - truth)[tissue].mean().abs() < 0.15
    assert beside["attention"][~body].mean() > 0.8
    assert beside["attention"][body].mean() < 0.5
