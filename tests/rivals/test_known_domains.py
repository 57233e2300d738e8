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

from contourdiff.rivals.cycle import AdversarialTerm, CycleTerm, CycleTrainer, Term
from contourdiff.rivals.feature_alignment import FeatureAlignment, ScoreDiscriminator
from contourdiff.rivals.handlers import TrainingBudget
from contourdiff.rivals.image_pool import ImagePool
from contourdiff.rivals.segmentation import SegmentationTerm, SemanticConsistencyTerm, TranslateSlice, unit_range
from helpers import shapes

LEVELS = {"ct": [-1.0, -0.85, 0.3], "mr": [-1.0, 0.5, 0.9]}
"""Air, body and bones: what stands out from the air are the bones in CT, and the body in MR."""
Items = dict[str, Tensor]
LOSS = DiceCELoss(to_onehot_y=True, softmax=True)
GENERATORS = ("ct_to_mr", "mr_to_ct")


def images(side: str, first: int, slices: int) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and labels of the bones, ``(slices, 1, 32, 32)``."""
    items = [shapes(first + number, torch.tensor(LEVELS[side]), size=32) for number in range(slices)]
    image, label = (torch.stack([item[key] for item in items]) for key in ("image", "label"))
    return image + 0.02 * torch.randn(image.shape), (label == 2).float()


def loader(items: Items, iterations: int, batch_size: int) -> torch.utils.data.DataLoader:
    """Random items, those of each side by itself, so that no CT comes with an MR of the same number."""
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(len(items["ct"])), rng.integers(len(items["mr"]))) for _ in range(iterations * batch_size)]
    data = [{"ct": items["ct"][i], "ct_label": items["ct_label"][i], "mr": items["mr"][j]} for i, j in pairs]
    return torch.utils.data.DataLoader(data, batch_size=batch_size)  # type: ignore[arg-type]


def unet() -> UNet:
    return UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2), norm="instance")


def generator() -> nn.Module:
    """Three convolutions; what they have to find is a curve of gray levels."""
    layers = nn.Conv2d(1, 24, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, padding_mode="reflect"), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv2d(24, 1, 1), nn.Tanh())


def cycle(items: Items, iterations: int, terms: dict[str, Term], also: nn.Module | None = None) -> nn.ModuleDict:
    """Networks of a cycle after so many iterations; ``also`` learns with the generators."""
    networks = nn.ModuleDict({name: generator() for name in GENERATORS})
    for side in ("ct", "mr"):
        networks[f"{side}_discriminator"] = PatchDiscriminator(2, 16, 1, num_layers_d=2, norm="INSTANCE")
    learning = nn.ModuleList([networks[name] for name in GENERATORS] + ([also] if also else []))
    judges = nn.ModuleList([networks["ct_discriminator"], networks["mr_discriminator"]])
    optimizers = {
        name: torch.optim.Adam(part.parameters(), lr=2e-3, betas=(0.5, 0.999))
        for name, part in (("generators", learning), ("discriminators", judges))
    }
    base: dict[str, Term] = {"adversarial": AdversarialTerm(*judges), "cycle": CycleTerm(weight=2)}
    pools = {"ct": ImagePool(), "mr": ImagePool()}
    handlers = [TrainingBudget(optimizers)]
    data = loader(items, iterations, 2)
    CycleTrainer(networks, optimizers, base | terms, pools, data, 1, train_handlers=handlers).run()
    return networks


def supervised(network: nn.Module, items: Items, iterations: int, alignment: FeatureAlignment | None = None) -> None:
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


def dice(network: nn.Module, side: str) -> float:
    """Dice of the parts in images that no training has seen."""
    image, label = images(side, 1000, 32)
    with torch.no_grad():
        found = network.eval()(unit_range(image)).argmax(dim=1, keepdim=True)
    return float(DiceMetric(include_background=True)(found, label).mean())


@pytest.fixture(scope="module")
def items() -> Items:
    torch.manual_seed(0)
    ct, label = images("ct", 0, 64)
    return {"ct": ct, "ct_label": label, "mr": images("mr", 100, 64)[0]}


@pytest.fixture(scope="module")
def task_network(items: Items) -> nn.Module:
    """Trained on CT alone: it segments CT, and fails on MR."""
    torch.manual_seed(1)
    network = unet()
    supervised(network, items | {name: unit_range(items[name]) for name in ("ct", "mr")}, 60)
    assert dice(network, "ct") > 0.8
    assert dice(network, "mr") < 0.2
    return network


def test_synseg_net_segments_the_other_domain_without_a_label_of_it(items: Items) -> None:
    torch.manual_seed(2)
    segmentation = unet()
    cycle(items, 250, {"segmentation": SegmentationTerm(segmentation, LOSS)}, also=segmentation)
    assert dice(segmentation, "mr") > 0.8


def test_cycada_segments_the_other_domain_without_a_label_of_it(items: Items, task_network: nn.Module) -> None:
    torch.manual_seed(3)
    networks = cycle(items, 250, {"semantic": SemanticConsistencyTerm(task_network, LOSS)})
    translate = TranslateSlice(networks["ct_to_mr"].eval())
    translated = torch.stack([torch.tensor(translate((ct[0].numpy() + 1) * 127.5))[None] / 255 for ct in items["ct"]])
    network, discriminator = unet(), ScoreDiscriminator(2, channels=(16, 8))
    network.load_state_dict(task_network.state_dict())
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-3)
    aligned = FeatureAlignment(discriminator, optimizer, TrainingBudget({}), start=0.5)
    supervised(network, items | {"ct": translated, "mr": unit_range(items["mr"])}, 80, aligned)
    assert dice(network, "mr") > 0.8
