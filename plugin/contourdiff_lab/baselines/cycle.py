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

DISCRIMINATORS = ("ct_discriminator", "mr_discriminator")


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
        extras: what else the dataset's items have (``ct_mask``), and what the generators return beside their image,
            named by generator, pass and own name (``ct_to_mr_fake_attention``, ``mr_to_ct_cycled_attention``).
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
    """Distance of what the discriminators see in both fakes to "real"."""

    ct_discriminator: nn.Module
    mr_discriminator: nn.Module
    weight: float = 1.0

    def __post_init__(self) -> None:
        self.loss = least_squares()

    def __call__(self, batch: CycleBatch) -> Tensor:
        """Sum over both directions."""
        judged = self.mr_discriminator(batch.fake_mr)[-1], self.ct_discriminator(batch.fake_ct)[-1]
        losses = [
            self.loss(output.float(), target_is_real=True, for_discriminator=False)
            for output in judged
        ]
        return self.weight * (losses[0] + losses[1])


@dataclass(eq=False)
class CycleTerm:
    """Mean absolute difference of an image and its translation there and back."""

    weight: float = 10.0

    def __call__(self, batch: CycleBatch) -> Tensor:
        """Sum over both directions."""
        return self.weight * (
            l1_loss(batch.cycled_ct, batch.ct) + l1_loss(batch.cycled_mr, batch.mr)
        )


@dataclass(eq=False)
class IdentityTerm:
    """Mean absolute difference of an MR and its "translation" to MR, and the same for CT."""

    ct_to_mr: nn.Module
    mr_to_ct: nn.Module
    weight: float = 5.0

    def __call__(self, batch: CycleBatch) -> Tensor:
        """Sum over both generators; a weight of 0 runs none."""
        if self.weight == 0:
            return batch.ct.new_zeros(())
        same_mr, same_ct = image_of(self.ct_to_mr(batch.mr)), image_of(self.mr_to_ct(batch.ct))
        return self.weight * (
            l1_loss(same_mr.float(), batch.mr) + l1_loss(same_ct.float(), batch.ct)
        )


class CycleTrainer(Trainer):
    """Train two generators against two discriminators; the loss of the generators is the sum of ``terms``.

    ``state.output`` has the sum as ``loss``, the value of each term by its name, and ``discriminators``.

    Args:
        networks: ``ct_to_mr``, ``mr_to_ct``, ``ct_discriminator``, ``mr_discriminator``, on ``device``, and whatever
            else learns; a generator returns an image, or an image and a dictionary of other tensors. A discriminator
            returns a list whose last item is its output, as MONAI's ``PatchDiscriminator``.
        optimizers: ``discriminators``, and any number of others, stepped with the generators' loss.
        terms: terms of the generators' loss by name.
        train_data_loader: batches of [`contourdiff_lab.baselines.unpaired.UnpairedDataset`][].
        max_epochs: number of epochs.
        device: where the batches are moved to.
        pools: the discriminators' [`contourdiff_lab.baselines.image_pool.ImagePool`][] of ``ct`` and ``mr``.
        amp: run all networks under autocast in bfloat16, on any device.
        train_handlers: handlers to attach.

    Raises ``ValueError`` if a network, the discriminators' or any other optimizer, a pool, or all terms are missing.

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
        missing = ({"ct_to_mr", "mr_to_ct", *DISCRIMINATORS} - set(networks)) | (
            {"ct", "mr"} - set(pools)
        )
        if missing or "discriminators" not in optimizers or len(optimizers) < 2 or not terms:
            raise ValueError(
                "expected ct_to_mr, mr_to_ct and both discriminators, pools of ct and mr, optimizers of the "
                f"discriminators and of the generators, and a term or more, got {list(networks)}, {list(pools)}, "
                f"{list(optimizers)}, {list(terms)}"
            )
        self.networks, self.optimizers, self.terms = networks, dict(optimizers), dict(terms)
        self.pools, self.autocast = dict(pools), amp
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
        values: dict[str, Tensor] = {}
        with frozen([self.networks[name] for name in DISCRIMINATORS]):
            with self._precision():
                batch = self.cycle_batch(batchdata)
                losses = {name: term(batch) for name, term in self.terms.items()}
            values["loss"] = torch.stack(list(losses.values())).sum()
            self._step(
                [name for name in self.optimizers if name != "discriminators"], values["loss"]
            )
        with self._precision():
            values["discriminators"] = self._judged("mr", batch.mr, batch.fake_mr)
            values["discriminators"] = values["discriminators"] + self._judged(
                "ct", batch.ct, batch.fake_ct
            )
        self._step(["discriminators"], values["discriminators"])
        return {name: float(value.detach()) for name, value in {**values, **losses}.items()}

    def cycle_batch(self, batchdata: Mapping[str, Tensor]) -> CycleBatch:
        """Translate a batch of the data loader there and back."""
        images = {name: value.to(self.state.device) for name, value in batchdata.items()}
        ct, mr, label = images.pop("ct"), images.pop("mr"), images.pop("ct_label", None)
        extras = dict(images)

        def translated(generator: str, image: Tensor, passed: str) -> Tensor:
            output = self.networks[generator](image)
            others = output[1] if isinstance(output, tuple) else {}
            extras.update(
                {f"{generator}_{passed}_{name}": tensor for name, tensor in others.items()}
            )
            return image_of(output).float()

        fake_mr, fake_ct = translated("ct_to_mr", ct, "fake"), translated("mr_to_ct", mr, "fake")
        cycled_ct, cycled_mr = (
            translated("mr_to_ct", fake_mr, "cycled"),
            translated("ct_to_mr", fake_ct, "cycled"),
        )
        return CycleBatch(ct, mr, fake_mr, fake_ct, cycled_ct, cycled_mr, label, extras)

    def _judged(self, side: str, real: Tensor, fake: Tensor) -> Tensor:
        """Half the loss of a discriminator on real images and on a pool's fakes: slower learning, as in the paper."""
        discriminator = self.networks[f"{side}_discriminator"]
        on_real, on_fake = (
            discriminator(real)[-1].float(),
            discriminator(self.pools[side](fake))[-1].float(),
        )
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
    """Compute no gradients of these networks' weights, which a step of others does not use."""
    for network in networks:
        network.requires_grad_(False)
    try:
        yield
    finally:
        for network in networks:
            network.requires_grad_(True)
