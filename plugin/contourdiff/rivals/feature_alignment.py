# SPDX-License-Identifier: Apache-2.0
"""CyCADA's second stage: a segmentation network whose outputs do not reveal whether a slice is translated or real."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.losses import PatchAdversarialLoss
from torch import Tensor, nn
from torch.optim import Optimizer


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

    def __init__(self, in_channels: int, channels: tuple[int, int] = (512, 256), window: int = 100) -> None:
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

    First the discriminator learns to tell scores of translated CT from scores of real MR. While it is right often
    enough, the network learns from the labels of the translated CT, and to have real MR taken for translated CT.
    Hoffman et al., CyCADA, ICML 2018, eq. (5), with one network for both, as in the paper's segmentation of streets.

    Args:
        discriminator: of translated and real.
        optimizer: of the discriminator.
        weight: of the adversarial loss of the network, 0.1 in the paper's code.
        min_accuracy: share of right judgements below which the network waits, 0.6 in the paper's code.
        amp: autocast in bfloat16, on any device.
    """

    discriminator: ScoreDiscriminator
    optimizer: Optimizer
    weight: float = 0.1
    min_accuracy: float = 0.6
    amp: bool = False

    def __post_init__(self) -> None:
        self._loss = PatchAdversarialLoss(criterion="bce")

    def __call__(self, engine: SupervisedTrainer, batchdata: Mapping[str, Tensor]) -> dict[str, Any]:
        """One iteration; its losses and the discriminator's accuracy are the output.

        A batch has translated slices ``ct`` and real ones ``mr``, ``(B, 1, H, W)`` in [0, 1], and ``ct_label``.
        """
        translated, label, real = (batchdata[key].to(engine.state.device) for key in ("ct", "ct_label", "mr"))
        engine.network.train()
        self.discriminator.train()
        with torch.autocast(translated.device.type, dtype=torch.bfloat16, enabled=self.amp):
            scores = [engine.network(image).float() for image in (translated, real)]
        discriminator_loss, accuracy = self._judge(*scores)
        output = {"discriminator": discriminator_loss, "accuracy": accuracy, "adversarial": 0.0}
        segmentation = engine.loss_function(scores[0], label)
        output["segmentation"] = segmentation.item()
        if accuracy > self.min_accuracy:
            adversarial = self.weight * self.adversarial_loss(scores[1])
            engine.optimizer.zero_grad()
            (segmentation + adversarial).backward()
            engine.optimizer.step()
            output["adversarial"] = adversarial.item()
        return output | {"loss": output["segmentation"] + output["adversarial"]}

    def discriminator_loss(self, translated: Tensor, real: Tensor) -> Tensor:
        """Binary cross-entropy of the logits ``(B, 1, H, W)`` of translated slices, truth 1, and of real, truth 0."""
        judged = ((translated, True), (real, False))
        losses = [self._loss(logits, target, for_discriminator=True) for logits, target in judged]
        return torch.stack(losses).mean()

    def adversarial_loss(self, scores: Tensor) -> Tensor:
        """Loss of the network: its scores of real MR, ``(B, C, H, W)``, should be taken for translated CT."""
        self.discriminator.requires_grad_(False)
        loss = self._loss(self.discriminator(scores), True, for_discriminator=False)
        self.discriminator.requires_grad_(True)
        return torch.as_tensor(loss)

    def _judge(self, translated: Tensor, real: Tensor) -> tuple[float, float]:
        """Train the discriminator on the scores of a batch; its loss, and its accuracy over the last batches."""
        logits = [self.discriminator(scores.detach()) for scores in (translated, real)]
        loss = self.discriminator_loss(*logits)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item(), self.discriminator.record(*logits)
