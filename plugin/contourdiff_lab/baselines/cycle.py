# SPDX-License-Identifier: Apache-2.0
"""Cycle-consistent adversarial training: a batch, the terms of CycleGAN, and the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import Trainer
from monai.losses import PatchAdversarialLoss
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from contourdiff_lab.baselines.generators import image_of
from contourdiff_lab.baselines.image_pool import ImagePool

GENERATORS = ("ct_to_mr", "mr_to_ct")
DISCRIMINATORS = ("ct_discriminator", "mr_discriminator")
SIDES = ("ct", "mr")


@dataclass
class CycleBatch:
    """Images of an iteration, ``(B, 1, H, W)`` in [-1, 1]; G translates CT to MR, and F MR to CT.

    Attributes:
        ct: real CT.
        mr: real MR.
        fake_mr: G(ct).
        fake_ct: F(mr).
        cycled_ct: F(G(ct)).
        cycled_mr: G(F(mr)).
        ct_label: class numbers, 0 for background; ``None`` without labels.
        extras: further tensors by name: those of the dataset's items (``ct_mask``), and those that a generator returns
            beside its image, named by generator, pass and tensor (``ct_to_mr_fake_attention``,
            ``mr_to_ct_cycled_attention``).
    """

    ct: Tensor
    mr: Tensor
    fake_mr: Tensor
    fake_ct: Tensor
    cycled_ct: Tensor
    cycled_mr: Tensor
    ct_label: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)


Term = Callable[[CycleBatch], Tensor]
"""One term of the generators' loss, a scalar that is already multiplied by its weight."""


def least_squares() -> PatchAdversarialLoss:
    """Adversarial loss of LSGAN: mean squared distance of the discriminator's output to 1 (real) or 0."""
    return PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)


@dataclass(eq=False)
class AdversarialTerm:
    """Distance of the discriminators' judgement of both fakes to "real"."""

    ct_discriminator: nn.Module
    mr_discriminator: nn.Module
    weight: float = 1.0

    def __post_init__(self) -> None:
        self.loss = least_squares()

    def __call__(self, batch: CycleBatch) -> Tensor:
        """Sum over both directions."""
        on_mr = self._distance_to_real(self.mr_discriminator, batch.fake_mr)
        on_ct = self._distance_to_real(self.ct_discriminator, batch.fake_ct)
        return self.weight * (on_mr + on_ct)

    def _distance_to_real(self, discriminator: nn.Module, fake: Tensor) -> Tensor:
        output = discriminator(fake)[-1].float()
        loss: Tensor = self.loss(output, target_is_real=True, for_discriminator=False)
        return loss


@dataclass(eq=False)
class CycleTerm:
    """Mean absolute difference of an image and its translation there and back."""

    weight: float = 10.0

    def __call__(self, batch: CycleBatch) -> Tensor:
        """Sum over both directions."""
        on_ct = l1_loss(batch.cycled_ct, batch.ct)
        on_mr = l1_loss(batch.cycled_mr, batch.mr)
        return self.weight * (on_ct + on_mr)


@dataclass(eq=False)
class IdentityTerm:
    """Mean absolute difference of an MR and its "translation" to MR, and the same for CT."""

    ct_to_mr: nn.Module
    mr_to_ct: nn.Module
    weight: float = 5.0

    def __call__(self, batch: CycleBatch) -> Tensor:
        """Sum over both generators; with a weight of 0 they are not run."""
        if self.weight == 0:
            return batch.ct.new_zeros(())
        same_mr = image_of(self.ct_to_mr(batch.mr)).float()
        same_ct = image_of(self.mr_to_ct(batch.ct)).float()
        return self.weight * (l1_loss(same_mr, batch.mr) + l1_loss(same_ct, batch.ct))


class CycleTrainer(Trainer):
    """Train two generators against two discriminators; the loss of the generators is the sum of ``terms``.

    ``state.output`` has the sum as ``loss``, the value of each term by its name, and ``discriminators``.

    Args:
        networks: ``ct_to_mr``, ``mr_to_ct``, ``ct_discriminator``, ``mr_discriminator``, on ``device``, and any further
            network that learns. A generator returns an image, or an image and a dictionary of other tensors. A
            discriminator returns a list whose last item is its output, as MONAI's ``PatchDiscriminator`` does.
        optimizers: ``discriminators``, and any number of others, stepped with the generators' loss.
        terms: terms of the generators' loss by name.
        pools: the discriminators' [`contourdiff_lab.baselines.image_pool.ImagePool`][] of ``ct`` and ``mr``.
        train_data_loader: batches of [`contourdiff_lab.baselines.unpaired.UnpairedDataset`][].
        max_epochs: number of epochs.
        device: where the batches are moved to.
        amp: run all networks under autocast in bfloat16, on any device.
        train_handlers: handlers to attach.

    Raises:
        ValueError: if a network, a pool, the discriminators' optimizer, every other optimizer, or every term is
            missing.

    References:
        Zhu et al., arXiv 1703.10593.
    """

    def __init__(
        self,
        networks: nn.ModuleDict,
        optimizers: Mapping[str, torch.optim.Optimizer],
        terms: Mapping[str, Term],
        pools: Mapping[str, ImagePool],
        train_data_loader: Any,
        max_epochs: int,
        device: torch.device | str = "cpu",
        amp: bool = False,
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        has_networks = {*GENERATORS, *DISCRIMINATORS} <= set(networks)
        has_optimizers = "discriminators" in optimizers and len(optimizers) > 1
        has_pools = set(SIDES) <= set(pools)
        if not (has_networks and has_optimizers and has_pools and terms):
            raise ValueError(
                "expected ct_to_mr, mr_to_ct and both discriminators, pools of ct and mr, optimizers of the "
                f"discriminators and of the generators, and a term or more, got {list(networks)}, {list(pools)}, "
                f"{list(optimizers)}, {list(terms)}"
            )
        self.networks = networks
        self.optimizers = dict(optimizers)
        self.terms = dict(terms)
        self.pools = dict(pools)
        self.autocast = amp
        self.adversarial = least_squares()
        super().__init__(
            torch.device(device),
            max_epochs,
            train_data_loader,
            handlers=train_handlers,
            decollate=False,
        )

    def _iteration(self, engine: Engine, batchdata: Mapping[str, Tensor]) -> dict[str, float]:  # type: ignore[override]
        """One step of the generators, then one of the discriminators."""
        self.networks.train()
        with frozen([self.networks[name] for name in DISCRIMINATORS]):
            with self._precision():
                batch = self.cycle_batch(batchdata)
                terms = {name: term(batch) for name, term in self.terms.items()}
            loss = torch.stack(list(terms.values())).sum()
            self._step([name for name in self.optimizers if name != "discriminators"], loss)
        with self._precision():
            on_mr = self._discriminator_loss("mr", batch.mr, batch.fake_mr)
            on_ct = self._discriminator_loss("ct", batch.ct, batch.fake_ct)
            discriminator_loss = on_mr + on_ct
        self._step(["discriminators"], discriminator_loss)
        losses = {"loss": loss, "discriminators": discriminator_loss, **terms}
        return {name: float(value.detach()) for name, value in losses.items()}

    def cycle_batch(self, batchdata: Mapping[str, Tensor]) -> CycleBatch:
        """Translate a batch of the data loader there and back."""
        extras = {name: value.to(self.state.device) for name, value in batchdata.items()}
        ct = extras.pop("ct")
        mr = extras.pop("mr")
        ct_label = extras.pop("ct_label", None)
        fake_mr = self._generate("ct_to_mr", ct, "fake", extras)
        fake_ct = self._generate("mr_to_ct", mr, "fake", extras)
        cycled_ct = self._generate("mr_to_ct", fake_mr, "cycled", extras)
        cycled_mr = self._generate("ct_to_mr", fake_ct, "cycled", extras)
        return CycleBatch(ct, mr, fake_mr, fake_ct, cycled_ct, cycled_mr, ct_label, extras)

    def _generate(
        self, generator: str, image: Tensor, pass_name: str, extras: dict[str, Tensor]
    ) -> Tensor:
        """Image of a generator as float32; its other tensors are added to ``extras``."""
        output = self.networks[generator](image)
        if isinstance(output, tuple):
            for name, tensor in output[1].items():
                extras[f"{generator}_{pass_name}_{name}"] = tensor
        return image_of(output).float()

    def _discriminator_loss(self, side: str, real: Tensor, fake: Tensor) -> Tensor:
        """Half the loss on real images and on a pool's fakes, which slows the learning, as in the paper."""
        discriminator = self.networks[f"{side}_discriminator"]
        on_real = discriminator(real)[-1].float()
        on_fake = discriminator(self.pools[side](fake))[-1].float()
        loss: Tensor = self.adversarial(on_real, target_is_real=True, for_discriminator=True)
        loss = loss + self.adversarial(on_fake, target_is_real=False, for_discriminator=True)
        return 0.5 * loss

    def _step(self, names: Sequence[str], loss: Tensor) -> None:
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        for name in names:
            self.optimizers[name].step()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=self.autocast)


@contextmanager
def frozen(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Compute no gradients of these networks' weights: the step inside is of other networks."""
    for network in networks:
        network.requires_grad_(False)
    try:
        yield
    finally:
        for network in networks:
            network.requires_grad_(True)
