# SPDX-License-Identifier: Apache-2.0
"""SynSeg-Net and CyCADA on two domains that differ by an invertible change of intensity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import PatchDiscriminator, UNet
from torch import Tensor, nn

from contourdiff_lab.baselines.cycle import (
    DISCRIMINATORS,
    GENERATORS,
    AdversarialTerm,
    CycleTerm,
    CycleTrainer,
    Term,
)
from contourdiff_lab.baselines.feature_alignment import FeatureAlignment, ScoreDiscriminator
from contourdiff_lab.baselines.handlers import TrainingBudget
from contourdiff_lab.baselines.image_pool import ImagePool
from contourdiff_lab.baselines.segmentation import (
    SegmentationTerm,
    SemanticConsistencyTerm,
    TranslateSlice,
    unit_range,
)
from helpers.domains import random_shapes

Levels = dict[str, list[float]]
NEGATIVE: Levels = {"ct": [-1.0, -0.2, 0.6], "mr": [1.0, 0.2, -0.6]}
CURVED: Levels = {"ct": [-1.0, -0.85, 0.3], "mr": [-1.0, 0.5, 0.9]}
"""Air, body and bones of both domains: a negative, and a curve that lifts the body far above the air."""
Items = dict[str, Tensor]
LOSS = DiceCELoss(to_onehot_y=True, softmax=True)


def images(levels: list[float], first: int, slices: int) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and labels of the bones, ``(slices, 1, 32, 32)``."""
    items = [
        random_shapes(first + number, torch.tensor(levels), size=32) for number in range(slices)
    ]
    image = torch.stack([item["image"] for item in items])
    label = torch.stack([item["label"] for item in items])
    return image + 0.02 * torch.randn(image.shape), (label == 2).float()


def loader(items: Items, iterations: int, batch_size: int) -> torch.utils.data.DataLoader:
    """Random items, those of each side by itself, so that no CT comes with an MR of the same number."""
    rng = np.random.default_rng(0)
    data = []
    for _ in range(iterations * batch_size):
        ct_number = rng.integers(len(items["ct"]))
        mr_number = rng.integers(len(items["mr"]))
        item = {
            "ct": items["ct"][ct_number],
            "ct_label": items["ct_label"][ct_number],
            "mr": items["mr"][mr_number],
        }
        data.append(item)
    return torch.utils.data.DataLoader(data, batch_size=batch_size)  # type: ignore[arg-type]


def unet() -> UNet:
    return UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        channels=(8, 16, 32),
        strides=(2, 2),
        norm="instance",
    )


def generator() -> nn.Module:
    """Three convolutions; what they have to find is a curve of gray levels."""
    layers = (
        nn.Conv2d(1, 24, 1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
    )
    return nn.Sequential(*layers, nn.Conv2d(24, 1, 1), nn.Tanh())


def cycle(
    items: Items, iterations: int, terms: dict[str, Term], also: nn.Module | None = None
) -> nn.ModuleDict:
    """Networks of a cycle after so many iterations; ``also`` learns with the generators."""
    networks = nn.ModuleDict({name: generator() for name in GENERATORS})
    for name in DISCRIMINATORS:
        networks[name] = PatchDiscriminator(2, 16, 1, num_layers_d=2, norm="INSTANCE")
    learning = nn.ModuleList([networks[name] for name in GENERATORS])
    if also is not None:
        learning.append(also)
    judges = nn.ModuleList([networks[name] for name in DISCRIMINATORS])
    optimizers = {}
    for name, part in (("generators", learning), ("discriminators", judges)):
        optimizers[name] = torch.optim.Adam(part.parameters(), lr=2e-3, betas=(0.5, 0.999))
    base: dict[str, Term] = {"adversarial": AdversarialTerm(*judges), "cycle": CycleTerm(weight=2)}
    pools = {"ct": ImagePool(), "mr": ImagePool()}
    handlers = [TrainingBudget(optimizers)]
    data = loader(items, iterations, 2)
    CycleTrainer(networks, optimizers, base | terms, pools, data, 1, train_handlers=handlers).run()
    return networks


def supervised(
    network: nn.Module, items: Items, iterations: int, alignment: FeatureAlignment | None = None
) -> None:
    """Train a network on ``ct`` with labels, both of ``items`` in [0, 1], by an alignment if there is one."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3 if alignment is None else 1e-3)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=loader(items, iterations, 8),
        network=network,
        optimizer=optimizer,
        loss_function=LOSS,
        prepare_batch=lambda batch, *_, **__: (batch["ct"], batch["ct_label"]),
        iteration_update=alignment,
        decollate=False,
    )
    trainer.run()


def dice(network: nn.Module, levels: list[float]) -> float:
    """Dice of the parts in images that no training has seen."""
    image, label = images(levels, 1000, 32)
    with torch.no_grad():
        classes = network.eval()(unit_range(image)).argmax(dim=1, keepdim=True)
    return float(DiceMetric(include_background=True)(classes, label).mean())


def domains(levels: Levels) -> tuple[Items, UNet]:
    """Items of both domains, and a network that is trained on the labels of CT alone."""
    torch.manual_seed(0)
    ct, label = images(levels["ct"], 0, 64)
    items = {"ct": ct, "ct_label": label, "mr": images(levels["mr"], 100, 64)[0]}
    network = unet()
    supervised(network, items | {name: unit_range(items[name]) for name in ("ct", "mr")}, 60)
    assert dice(network, levels["ct"]) > 0.9
    return items, network


@pytest.mark.slow
def test_synseg_net_segments_the_other_domain_without_a_label_of_it() -> None:
    items, task_network = domains(NEGATIVE)
    torch.manual_seed(2)
    segmentation = unet()
    cycle(items, 250, {"segmentation": SegmentationTerm(segmentation, LOSS)}, also=segmentation)
    assert dice(task_network, NEGATIVE["mr"]) < 0.6
    assert dice(segmentation, NEGATIVE["mr"]) > 0.85


@pytest.mark.slow
def test_cycada_segments_the_other_domain_without_a_label_of_it() -> None:
    items, task_network = domains(CURVED)
    torch.manual_seed(3)
    networks = cycle(items, 250, {"semantic": SemanticConsistencyTerm(task_network, LOSS)})
    translate = TranslateSlice(networks["ct_to_mr"].eval())
    slices = [translate((ct[0].numpy() + 1) * 127.5) for ct in items["ct"]]
    translated = torch.tensor(np.stack(slices))[:, None] / 255
    network, discriminator = unet(), ScoreDiscriminator(2, channels=(16, 8))
    network.load_state_dict(task_network.state_dict())
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-3)
    aligned = FeatureAlignment(discriminator, optimizer, TrainingBudget({}), start=0.5)
    supervised(network, items | {"ct": translated, "mr": unit_range(items["mr"])}, 80, aligned)
    assert dice(task_network, CURVED["mr"]) < 0.65
    assert dice(network, CURVED["mr"]) > 0.8
