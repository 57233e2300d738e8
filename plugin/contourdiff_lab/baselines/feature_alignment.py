# SPDX-License-Identifier: Apache-2.0
"""CyCADA's second stage: a segmentation network whose outputs do not reveal whether a slice is translated or real."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.losses import PatchAdversarialLoss
from torch import Tensor, nn
from torch.optim import Optimizer

from contourdiff.data.label_map import LabelMap
from contourdiff_lab.baselines.cycle import frozen
from contourdiff_lab.baselines.handlers import TrainingBudget


class ScoreDiscriminator(nn.Module):
    """Judge whether scores are those of a translated or a real slice, each pixel by itself.

    Three 1 x 1 convolutions with dropout, as in the paper's code. The buffer ``accuracies`` holds the share of pixels
    that were judged right in each of the last ``window`` batches, so that a resumed training goes on with them.

    Args:
        in_channels: classes of the segmentation, including the background.
        channels: of the hidden layers.
        window: batches over which the accuracy is averaged.
    """

    accuracies: Tensor

    def __init__(
        self, in_channels: int, channels: tuple[int, int] = (512, 256), window: int = 100
    ) -> None:
        super().__init__()
        first, second = channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, first, 1),
            nn.Dropout2d(0.5),
            nn.ReLU(),
            nn.Conv2d(first, second, 1),
            nn.Dropout2d(0.5),
            nn.ReLU(),
            nn.Conv2d(second, 1, 1),
        )
        self.register_buffer("accuracies", torch.full((window,), torch.nan))

    def forward(self, scores: Tensor) -> Tensor:
        """Logit of each pixel, positive for a translated slice: ``(B, C, H, W)`` -> ``(B, 1, H, W)``."""
        logits: Tensor = self.layers(scores)
        return logits

    @torch.no_grad()
    def record(self, translated: Tensor, real: Tensor) -> float:
        """Take the logits of a batch into account; the accuracy over the last batches, in [0, 1]."""
        translated_right = (translated > 0).float().flatten()
        real_right = (real < 0).float().flatten()
        accuracy = torch.cat([translated_right, real_right]).mean()
        self.accuracies.copy_(torch.cat([self.accuracies[1:], accuracy[None]]))
        return self.accuracies.nanmean().item()


def score_discriminator(
    label_map: str | Path, device: torch.device | str = "cpu"
) -> ScoreDiscriminator:
    """A new discriminator of the scores of a label map's classes, see [`contourdiff.data.label_map.LabelMap`][]."""
    classes = LabelMap(label_map).classes
    return ScoreDiscriminator(in_channels=len(classes) + 1).to(device)


@dataclass(eq=False)
class FeatureAlignment:
    """Iteration of a ``SupervisedTrainer`` that adapts a segmentation network to real MR without labels.

    At first the network learns from the labels of the translated CT alone. Later the discriminator learns to tell the
    scores of translated CT from those of real MR. While it is right often enough, the network takes two separate steps,
    as in the paper's code: to score real MR so that it is taken for translated CT, then to learn from the labels.

    Args:
        discriminator: of translated and real.
        optimizer: of the discriminator.
        budget: of the training.
        start: share of the training after which the discriminator is used.
        weight: of the adversarial loss of the network, 0.1 in the paper's code.
        min_accuracy: the network waits unless a greater share of pixels is judged right, 0.6 in the paper's code.
        amp: autocast in bfloat16, on any device.

    References:
        Hoffman et al., CyCADA, ICML 2018, eq. (5), with one network for both, as in the paper's segmentation of
        streets.
    """

    discriminator: ScoreDiscriminator
    optimizer: Optimizer
    budget: TrainingBudget
    start: float = 0.5
    weight: float = 0.1
    min_accuracy: float = 0.6
    amp: bool = False

    def __post_init__(self) -> None:
        self._loss = PatchAdversarialLoss(criterion="bce")

    def __call__(self, engine: Any, batchdata: Mapping[str, Tensor]) -> dict[str, float]:
        """One iteration; its losses and the discriminator's accuracy are the output.

        A batch has translated slices ``ct`` and real ones ``mr``, ``(B, 1, H, W)`` in [0, 1], and ``ct_label``.
        """
        device = engine.state.device
        translated = batchdata["ct"].to(device)
        label = batchdata["ct_label"].to(device)
        real = batchdata["mr"].to(device)
        engine.network.train()
        output: dict[str, float] = {}
        losses: dict[str, Tensor] = {}
        if self.budget.share(engine) > self.start:
            with torch.no_grad():
                scores = self._scores(engine.network, translated)
            real_scores = self._scores(engine.network, real)
            output = self._judge(scores, real_scores.detach())
            if output["accuracy"] <= self.min_accuracy:
                return output
            losses["adversarial"] = self.weight * self.adversarial_loss(real_scores)
            self._step(engine, losses["adversarial"])
        scores = self._scores(engine.network, translated)
        losses["segmentation"] = engine.loss_function(scores, label)
        self._step(engine, losses["segmentation"])
        losses["loss"] = torch.stack(list(losses.values())).sum()
        for name, value in losses.items():
            output[name] = value.item()
        return output

    def _step(self, engine: Any, loss: Tensor) -> None:
        """One step of the network."""
        engine.optimizer.zero_grad()
        loss.backward()
        engine.optimizer.step()

    def discriminator_loss(self, translated: Tensor, real: Tensor) -> Tensor:
        """Binary cross-entropy of the logits ``(B, 1, H, W)`` of translated slices, truth 1, and of real, truth 0."""
        on_translated = self._loss(translated, True, for_discriminator=True)
        on_real = self._loss(real, False, for_discriminator=True)
        return torch.stack([on_translated, on_real]).mean()

    def adversarial_loss(self, scores: Tensor) -> Tensor:
        """Loss of the network: its scores of real MR, ``(B, C, H, W)``, should be taken for translated CT."""
        with frozen([self.discriminator]):
            loss: Tensor = self._loss(self.discriminator(scores), True, for_discriminator=False)
        return loss

    def _scores(self, network: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.amp):
            scores: Tensor = network(images).float()
        return scores

    def _judge(self, translated: Tensor, real: Tensor) -> dict[str, float]:
        """Train the discriminator on the scores of a batch; its loss, and its accuracy over the last batches."""
        self.discriminator.train()
        on_translated = self.discriminator(translated)
        on_real = self.discriminator(real)
        loss = self.discriminator_loss(on_translated, on_real)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        accuracy = self.discriminator.record(on_translated, on_real)
        return {"discriminator": loss.item(), "accuracy": accuracy}
