# SPDX-License-Identifier: Apache-2.0
"""Segmentation beside a cycle of generators: the loss of SynSeg-Net, and the semantic consistency of CyCADA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from contourdiff.bundle import config_files, read_config
from contourdiff.sampling.intensity import to_gray_levels, to_model_range
from contourdiff_lab.baselines.cycle import CycleBatch
from contourdiff_lab.baselines.generators import image_of

Loss = Callable[[Tensor, Tensor], Tensor]


def segmentation_network(
    bundle: str | Path | None, architecture: str, label_map: str | Path
) -> nn.Module:
    """A new network of ``segmentation_train.json`` with random weights, so that ``evaluate.json`` can load its own.

    Args:
        bundle: folder of the bundle, see [`contourdiff.bundle.find_bundle`][].
        architecture: one of those that the config names.
        label_map: see [`contourdiff.data.label_map.LabelMap`][]; it defines the classes.
    """
    settings = {"architecture": architecture, "label_map": str(label_map)}
    parser = read_config(config_files(bundle, base="segmentation_train"), settings)
    network: nn.Module = parser.get_parsed_content("network_def")
    return network


def unit_range(image: Tensor) -> Tensor:
    """Gray levels of a cycle, [-1, 1], as a segmentation network is given and tested with them: [0, 1]."""
    return (image + 1) / 2


@dataclass(eq=False)
class SegmentationTerm:
    """Fifth loss of SynSeg-Net: a network segments the translated slice, the label of the CT is the truth.

    The network and the generator that painted the slice learn from it together. Huo et al., SynSeg-Net, IEEE
    Transactions on Medical Imaging 38(4), 2019, eq. (5) to (7).

    Args:
        network: ``(B, 1, H, W)`` in [0, 1] -> scores of the classes ``(B, C, H, W)``.
        loss: of scores and class numbers ``(B, 1, H, W)``.
        weight: of the loss, 1 in the paper.
    """

    network: nn.Module
    loss: Loss
    weight: float = 1.0

    def __call__(self, batch: CycleBatch) -> Tensor:
        """Weighted loss of a batch; ``ValueError`` if it has no label of the CT."""
        if batch.ct_label is None:
            raise ValueError("expected ct_label in the batch, got none; train on CT with labels")
        return self.weight * self.loss(
            self.network(unit_range(batch.fake_mr)).float(), batch.ct_label
        )


@dataclass(eq=False)
class SemanticConsistencyTerm:
    """Semantic consistency of CyCADA: a translation is segmented as its source is, in both directions.

    The classes that the fixed task network finds in a slice are the truth for its translation. Hoffman et al., CyCADA,
    ICML 2018, eq. (4).

    Args:
        network: trained on CT, ``(B, 1, H, W)`` in [0, 1] -> scores ``(B, C, H, W)``; its weights are frozen here.
        loss: of scores and class numbers ``(B, 1, H, W)``, the one that the network was trained with.
        weight: of the loss, 1 in the paper's code.
    """

    network: nn.Module
    loss: Loss
    weight: float = 1.0

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)

    def __call__(self, batch: CycleBatch) -> Tensor:
        """Weighted sum of the losses of both directions."""
        of_ct, of_mr = (
            self._difference(batch.ct, batch.fake_mr),
            self._difference(batch.mr, batch.fake_ct),
        )
        return self.weight * (of_ct + of_mr)

    def _difference(self, source: Tensor, translation: Tensor) -> Tensor:
        with torch.no_grad():
            classes = self.network(unit_range(source)).argmax(dim=1, keepdim=True)
        return self.loss(self.network(unit_range(translation)).float(), classes)


@dataclass(eq=False)
class TranslateSlice:
    """Translate one CT slice with a trained generator; the transform of [`contourdiff.transforms.Slicewise`][].

    Args:
        generator: ``(1, 1, H, W)`` in [-1, 1] -> the same; the slice is extended with background at its ends to H and W
            that are multiples of its ``size_divisor``, if it has one.
        device: of the generator.
    """

    generator: nn.Module
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def __call__(self, img: np.ndarray) -> np.ndarray:
        """Gray levels ``(H, W)`` in [0, 255] -> the same."""
        height, width = img.shape
        image = to_model_range(
            torch.as_tensor(img, dtype=torch.float32, device=self.device)[None, None]
        )
        divisor = getattr(self.generator, "size_divisor", 1)
        padded = pad(image, (0, -width % divisor, 0, -height % divisor), value=-1.0)
        translated = image_of(self.generator(padded))[0, 0, :height, :width].float()
        return np.asarray(to_gray_levels(translated).cpu())
