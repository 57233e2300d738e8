# SPDX-License-Identifier: Apache-2.0
"""CyCADA's second stage: a segmentation network whose outputs do not reveal whether a slice is translated or real."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from monai.engines import SupervisedTrainer
from monai.losses import PatchAdversarialLoss
from torch import Tensor, nn
from torch.optim import Optimizer

from contourdiff_lab.baselines.cycle import frozen
from contourdiff_lab.baselines.handlers import TrainingBudget


class ScoreDiscriminator(nn.Module):
    """Judge of each pixel's scores, by the pixel alone: 1 x 1 convolutions with dropout, as in the paper's code.

    Its buffer ``accuracies`` holds the share of pixels that it judged right in each of the last ``window`` batches, so
    that a training that is resumed goes on with them.

    Args:
        in_channels: classes of the segmentation, with the background.
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
            *(nn.Conv2d(in_channels, first, 1), nn.Dropout2d(0.5), nn.ReLU()),
            *(nn.Conv2d(first, second, 1), nn.Dropout2d(0.5), nn.ReLU()),
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
        right = torch.cat([(translated > 0).float().flatten(), (real < 0).float().flatten()]).mean()
        self.accuracies.copy_(torch.cat([self.accuracies[1:], right[None]]))
        return self.accuracies.nanmean().item()


@dataclass(eq=False)
class FeatureAlignment:
    """Iteration of a ``SupervisedTrainer`` that adapts a segmentation network to real MR without labels.

    At first the network learns from the labels of the translated CT alone. Then the discriminator learns to tell scores
    of translated CT from scores of real MR. While it is right often enough, the network learns from the labels, and to
    have real MR taken for translated CT. Hoffman et al., CyCADA, ICML 2018, eq. (5), with one network for both, as in
    the paper's segmentation of streets.

    Args:
        discriminator: of translated and real.
        optimizer: of the discriminator.
        budget: of the training.
        start: share of the training after which the discriminator comes in.
        weight: of the adversarial loss of the network, 0.1 in the paper's code.
        min_accuracy: share of right judgements below which the network waits, 0.6 in the paper's code.
        amp: autocast in bfloat16, on any device.
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

    def __call__(
        self, engine: SupervisedTrainer, batchdata: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """One iteration; its losses and the discriminator's accuracy are the output.

        A batch has translated slices ``ct`` and real ones ``mr``, ``(B, 1, H, W)`` in [0, 1], and ``ct_label``.
        """
        translated, label, real = (
            batchdata[key].to(engine.state.device) for key in ("ct", "ct_label", "mr")
        )
        engine.network.train()
        scores = self._scores(engine.network, translated)
        losses = {"segmentation": engine.loss_function(scores, label)}
        output = {}
        if self.budget.share(engine) > self.start:
            real_scores = self._scores(engine.network, real)
            output = self._judge(scores.detach(), real_scores.detach())
            if output["accuracy"] <= self.min_accuracy:
                return output
            losses["adversarial"] = self.weight * self.adversarial_loss(real_scores)
        loss = torch.stack(list(losses.values())).sum()
        engine.optimizer.zero_grad()
        loss.backward()
        engine.optimizer.step()
        return output | {name: value.item() for name, value in {"loss": loss, **losses}.items()}

    def discriminator_loss(self, translated: Tensor, real: Tensor) -> Tensor:
        """Binary cross-entropy of the logits ``(B, 1, H, W)`` of translated slices, truth 1, and of real, truth 0."""
        judged = ((translated, True), (real, False))
        return torch.stack(
            [self._loss(logits, truth, for_discriminator=True) for logits, truth in judged]
        ).mean()

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
        logits = self.discriminator(translated), self.discriminator(real)
        loss = self.discriminator_loss(*logits)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"discriminator": loss.item(), "accuracy": self.discriminator.record(*logits)}
