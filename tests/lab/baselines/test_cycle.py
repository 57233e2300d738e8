# SPDX-License-Identifier: Apache-2.0
"""The losses have their closed forms, each network learns from its own, and a known mapping is found."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn

from contourdiff_lab.baselines.cycle import (
    DISCRIMINATORS,
    GENERATORS,
    AdversarialTerm,
    CycleBatch,
    CycleTerm,
    CycleTrainer,
    IdentityTerm,
)
from contourdiff_lab.baselines.handlers import TrainingBudget
from contourdiff_lab.baselines.image_pool import ImagePool
from contourdiff_lab.baselines.unpaired import UnpairedDataset
from helpers.domains import CT_LEVELS, MR_LEVELS, random_shapes

ITEM = {
    "ct": torch.full((1, 4, 4), 0.2),
    "mr": torch.full((1, 4, 4), -0.6),
    "ct_label": torch.ones(1, 4, 4),
}


class Gain(nn.Module):
    """Multiply by a weight; with a name, return the input beside the image."""

    def __init__(self, weight: float, beside: str = "") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.beside = beside

    def forward(self, images: Tensor) -> Any:
        output = self.weight * images
        return (output, {self.beside: images}) if self.beside else output


class Judge(Gain):
    """A discriminator: the last item is what counts."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, self.weight * images]


def gains(beside: str = "") -> nn.ModuleDict:
    parts = {
        "ct_to_mr": Gain(0.5, beside),
        "mr_to_ct": Gain(2.0),
        "ct_discriminator": Judge(3.0),
        "mr_discriminator": Judge(-1.0),
    }
    return nn.ModuleDict(parts)


def terms_of(networks: nn.ModuleDict) -> dict[str, Any]:
    return {
        "adversarial": AdversarialTerm(networks["ct_discriminator"], networks["mr_discriminator"]),
        "cycle": CycleTerm(),
        "identity": IdentityTerm(networks["ct_to_mr"], networks["mr_to_ct"]),
    }


def trainer_of(
    networks: nn.ModuleDict, changes: Mapping[str, Any] | None = None, rate: float = 0.01
) -> CycleTrainer:
    generators = [*networks["ct_to_mr"].parameters(), *networks["mr_to_ct"].parameters()]
    discriminators = [
        *networks["ct_discriminator"].parameters(),
        *networks["mr_discriminator"].parameters(),
    ]
    arguments: dict[str, Any] = {
        "optimizers": {
            "generators": torch.optim.SGD(generators, rate),
            "discriminators": torch.optim.SGD(discriminators, rate),
        },
        "terms": terms_of(networks),
        "pools": {"ct": ImagePool(0), "mr": ImagePool(0)},
        "train_data_loader": torch.utils.data.DataLoader([ITEM]),  # type: ignore[arg-type]
        **(changes or {}),
    }
    return CycleTrainer(networks, max_epochs=1, **arguments)


def batch_of(networks: nn.ModuleDict) -> CycleBatch:
    return trainer_of(networks).cycle_batch({name: value[None] for name, value in ITEM.items()})


@pytest.mark.parametrize("beside", ["", "attention"])
def test_the_terms_have_their_closed_forms(beside: str) -> None:
    """CT 0.2 becomes 0.1 and, back, 0.2; MR -0.6 becomes -1.2 and -0.6; the discriminators see -0.1 and -3.6."""
    networks = gains(beside)
    values = {}
    for name, term in terms_of(networks).items():
        values[name] = float(term(batch_of(networks)).detach())
    assert values["adversarial"] == pytest.approx((-0.1 - 1) ** 2 + (-3.6 - 1) ** 2)
    assert values["cycle"] == pytest.approx(0)
    assert values["identity"] == pytest.approx(5 * (abs(-0.3 + 0.6) + abs(0.4 - 0.2)))
    networks["mr_to_ct"].weight.data.fill_(3)
    assert float(CycleTerm(weight=2)(batch_of(networks)).detach()) == pytest.approx(2 * (0.1 + 0.3))


def test_an_identity_without_weight_runs_no_generator() -> None:
    batch = batch_of(gains())
    assert float(IdentityTerm(None, None, weight=0)(batch)) == 0  # type: ignore[arg-type]


def test_the_output_of_an_iteration_holds_the_sum_and_every_term() -> None:
    trainer = trainer_of(gains())
    trainer.run()
    output = trainer.state.output
    assert output["loss"] == pytest.approx(
        output["adversarial"] + output["cycle"] + output["identity"]
    )


def test_the_discriminators_learn_from_real_and_fake_as_they_were_before_the_step() -> None:
    """Half of ((D(real) - 1)^2 + D(fake)^2), for MR -0.6 and 0.1, and for CT 0.2 and -1.2."""
    trainer = trainer_of(gains())
    trainer.run()
    on_mr, on_ct = (0.6 - 1) ** 2 + (-0.1) ** 2, (0.6 - 1) ** 2 + (-3.6) ** 2
    assert trainer.state.output["discriminators"] == pytest.approx(0.5 * (on_mr + on_ct))


def test_a_step_of_one_side_leaves_the_other_alone() -> None:
    """A plain step of gradient descent for each, along the gradients of its own loss."""
    networks, rate = gains(), 0.01
    trainer_of(networks, rate=rate).run()
    slope = (0.6 - 1) * -0.6 + (-0.1) * 0.1  # of half of ((-0.6 w - 1)^2 + (0.1 w)^2) at w = -1
    assert float(networks["mr_discriminator"].weight) == pytest.approx(-1 - rate * slope)
    adversarial = 2 * (-0.1 - 1) * -0.2  # of (-0.2 g - 1)^2 at g = 0.5
    identity = 5 * -0.6  # of 5 |-0.6 g + 0.6|; the cycle has none at its minimum
    assert float(networks["ct_to_mr"].weight) == pytest.approx(
        0.5 - rate * (adversarial + identity), abs=1e-6
    )
    assert all(parameter.requires_grad for parameter in networks.parameters())


def test_a_further_optimizer_learns_with_the_generators() -> None:
    networks = gains()
    networks["further"] = Gain(4.0)
    changes = {
        "optimizers": {
            **trainer_of(networks).optimizers,
            "further": torch.optim.SGD(networks["further"].parameters(), 0.1),
        },
        "terms": {
            **terms_of(networks),
            "further": lambda batch: networks["further"](batch.ct_label).mean(),
        },
    }
    trainer = trainer_of(networks, changes)
    trainer.run()
    assert trainer.state.output["further"] == 4
    assert float(networks["further"].weight) == pytest.approx(3.9)


def test_tensors_beside_the_images_are_named_by_their_source() -> None:
    networks = gains("attention")
    items = {
        **{name: value[None] for name, value in ITEM.items()},
        "mr_mask": torch.zeros(1, 1, 4, 4),
    }
    batch = trainer_of(networks).cycle_batch(items)
    assert set(batch.extras) == {"mr_mask", "ct_to_mr_fake_attention", "ct_to_mr_cycled_attention"}
    assert torch.equal(batch.extras["ct_to_mr_cycled_attention"], batch.fake_ct)
    assert batch.ct_label is not None


MISSING = "expected ct_to_mr, mr_to_ct and both discriminators"


@pytest.mark.parametrize("part", ["optimizers", "terms", "pools"])
def test_a_trainer_without_one_of_its_parts_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match=MISSING):
        trainer_of(gains(), {part: {}})


def test_a_trainer_without_a_generator_is_refused() -> None:
    networks = gains()
    arguments = {"optimizers": trainer_of(networks).optimizers, "terms": terms_of(networks)}
    pools = {"ct": ImagePool(), "mr": ImagePool()}
    del networks["mr_to_ct"]
    with pytest.raises(ValueError, match=MISSING):
        CycleTrainer(networks, pools=pools, train_data_loader=None, max_epochs=1, **arguments)


def test_mixed_precision_computes_near_and_keeps_weights_whole() -> None:
    results = []
    for amp in (False, True):
        torch.manual_seed(0)
        networks = gains()
        networks["ct_to_mr"] = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        )
        trainer = trainer_of(networks, {"amp": amp})
        trainer.run()
        results.append(trainer.state.output["loss"])
        assert {parameter.dtype for parameter in networks.parameters()} == {torch.float32}
    assert results[0] != results[1]
    assert results[0] == pytest.approx(results[1], rel=0.05)


def small_generator() -> nn.Module:
    layers = (
        nn.Conv2d(1, 16, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(16, 16, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(16, 1, 1),
    )
    return nn.Sequential(*layers, nn.Tanh())


@pytest.mark.slow
def test_a_known_change_of_intensity_is_learned_without_pairs() -> None:
    """Other levels of the same kind of shapes: with the default weights, both mappings within 0.08 (from 0.25)."""
    torch.manual_seed(0)
    networks = nn.ModuleDict()
    for name in DISCRIMINATORS:
        networks[name] = PatchDiscriminator(2, 16, 1, num_layers_d=1, norm=None)  # type: ignore[arg-type]
    for name in GENERATORS:
        networks[name] = small_generator()
    ct_slices = [random_shapes(number, CT_LEVELS) for number in range(64)]
    mr_slices = [random_shapes(1000 + number, MR_LEVELS) for number in range(64)]
    dataset = UnpairedDataset(ct_slices, mr_slices)
    dataset.set_random_state(0)
    sampler = torch.utils.data.RandomSampler(dataset, num_samples=4 * 400)
    optimizers = {}
    for side, names in (("generators", GENERATORS), ("discriminators", DISCRIMINATORS)):
        parameters = itertools.chain.from_iterable(networks[name].parameters() for name in names)
        optimizers[side] = torch.optim.Adam(parameters, 3e-3, (0.5, 0.999))
    changes = {
        "optimizers": optimizers,
        "pools": {"ct": ImagePool(), "mr": ImagePool()},
        "train_data_loader": torch.utils.data.DataLoader(dataset, batch_size=4, sampler=sampler),
        "train_handlers": [TrainingBudget(optimizers)],
    }
    trainer_of(networks, changes).run()
    ct = torch.stack([random_shapes(seed, CT_LEVELS)["image"] for seed in range(500, 516)])
    mr = torch.stack([random_shapes(seed, MR_LEVELS)["image"] for seed in range(500, 516)])
    assert float((ct - mr).abs().mean()) > 0.2
    with torch.no_grad():
        assert float((networks["ct_to_mr"](ct) - mr).abs().mean()) < 0.08
        assert float((networks["mr_to_ct"](mr) - ct).abs().mean()) < 0.08
