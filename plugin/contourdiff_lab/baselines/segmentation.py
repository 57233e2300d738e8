# SPDX-License-Identifier: Apache-2.0
"""Segmentation beside a cycle of generators: the loss of SynSeg-Net, and the semantic consistency of CyCADA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor, nn
from torch.nn.functional import pad

from contourdiff.bundle import config_files, read_config
from contourdiff.sampling.intensity import to_gray_levels, to_model_range
from contourdiff.weights import load_weights
from contourdiff_lab.baselines.cycle import CycleBatch
from contourdiff_lab.baselines.generators import image_of

Loss = Callable[[Tensor, Tensor], Tensor]


def segmentation_network(
    bundle: str | Path | None,
    architecture: str,
    label_map: str | Path,
    device: torch.device | str = "cpu",
    weights: str | Path | None = None,
) -> nn.Module:
    """A network of ``segmentation_train.json``, so that ``evaluate.json`` can load and test what it learns.

    Args:
        bundle: folder of the bundle, see [`contourdiff.bundle.find_bundle`][].
        architecture: one of those that the config names.
        label_map: see [`contourdiff.data.label_map.LabelMap`][]; it defines the classes.
        device: where the network is moved to.
        weights: file of its weights, see [`contourdiff.weights.load_weights`][]; ``None`` draws them at random.
    """
    settings = {"architecture": architecture, "label_map": str(label_map)}
    parser = read_config(config_files(bundle, base="segmentation_train"), settings)
    network: nn.Module = parser.get_parsed_content("network_def")
    if weights is not None:
        return load_weights(network, weights, device)
    return network.to(device)


def intensity_augmentation(
    bundle: str | Path | None, remap_probability: float, intensity_probability: float
) -> Compose:
    """The augmentation of gray levels of ``segmentation_train.json``, so that every network is trained with it.

    It changes the ``image`` of a dictionary, ``(1, H, W)`` in [0, 1]. For ``bundle`` see [`segmentation_network`][],
    for the probabilities the settings of that config.
    """
    settings = {
        "remap_probability": remap_probability,
        "intensity_probability": intensity_probability,
    }
    parser = read_config(config_files(bundle, base="segmentation_train"), settings)
    augmentation: Compose = parser.get_parsed_content("intensity_augmentation")
    return augmentation


def unit_range(image: Tensor) -> Tensor:
    """Gray levels of a cycle, in [-1, 1], as a segmentation network sees them, in [0, 1]."""
    return (image + 1) / 2


@dataclass(eq=False)
class SegmentationTerm:
    """Fifth loss of SynSeg-Net: a network segments the translated slice, and the label of the CT is the truth.

    The network and the generator that painted the slice learn from it together.

    Args:
        network: ``(B, 1, H, W)`` in [0, 1] -> scores of the classes ``(B, C, H, W)``.
        loss: of scores and class numbers ``(B, 1, H, W)``.
        weight: of the loss, 1 in the paper.
        augmentation: changes the gray levels that the network sees, ``{"image": (1, H, W)}`` in [0, 1]; the paper has
            none. Its draws follow torch's seed. The generator's gradient passes it unchanged (straight-through).

    References:
        Huo et al., SynSeg-Net, IEEE Transactions on Medical Imaging 38(4), 2019, eq. (5) to (7).
    """

    network: nn.Module
    loss: Loss
    weight: float = 1.0
    augmentation: Compose | None = None

    def __call__(self, batch: CycleBatch) -> Tensor:
        """Weighted loss of a batch; ``ValueError`` if it has no label of the CT."""
        if batch.ct_label is None:
            raise ValueError("expected ct_label in the batch, got none; train on CT with labels")
        images = unit_range(batch.fake_mr)
        if self.augmentation is not None:
            images = images + self._change(images.detach(), self.augmentation)
        scores = self.network(images).float()
        return self.weight * self.loss(scores, batch.ct_label)

    def _change(self, images: Tensor, augmentation: Compose) -> Tensor:
        """What the augmentation adds to each image."""
        seed = torch.randint(2**31, ())
        augmentation.set_random_state(int(seed))
        augmented = []
        for image in images.cpu():
            augmented.append(augmentation({"image": image})["image"])
        return torch.stack(augmented).to(images) - images


@dataclass(eq=False)
class SemanticConsistencyTerm:
    """Semantic consistency of CyCADA: a translation is segmented as its source is, in both directions.

    The classes that the fixed task network finds in a slice are the truth for its translation.

    Args:
        network: trained on CT, ``(B, 1, H, W)`` in [0, 1] -> scores ``(B, C, H, W)``; its weights are frozen here.
        loss: of scores and class numbers ``(B, 1, H, W)``, the one that the network was trained with.
        weight: of the loss, 1 in the paper's code.

    References:
        Hoffman et al., CyCADA, ICML 2018, eq. (4).
    """

    network: nn.Module
    loss: Loss
    weight: float = 1.0

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)

    def __call__(self, batch: CycleBatch) -> Tensor:
        """Weighted sum of the losses of both directions."""
        of_ct = self._difference(batch.ct, batch.fake_mr)
        of_mr = self._difference(batch.mr, batch.fake_ct)
        return self.weight * (of_ct + of_mr)

    def _difference(self, source: Tensor, translation: Tensor) -> Tensor:
        with torch.no_grad():
            classes = self.network(unit_range(source)).argmax(dim=1, keepdim=True)
        scores = self.network(unit_range(translation)).float()
        return self.loss(scores, classes)


@dataclass(eq=False)
class TranslateSlice:
    """Translate one CT slice with a trained generator; the transform of [`contourdiff.transforms.Slicewise`][].

    Args:
        generator: ``(1, 1, H, W)`` in [-1, 1] -> the same. If it has a ``size_divisor``, the slice is padded with
            background at its ends, so that H and W are multiples of it.
        device: of the generator.
    """

    generator: nn.Module
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def __call__(self, img: np.ndarray) -> np.ndarray:
        """Gray levels ``(H, W)`` in [0, 255] -> the same."""
        height, width = img.shape
        gray_levels = torch.as_tensor(img, dtype=torch.float32, device=self.device)
        image = to_model_range(gray_levels[None, None])
        divisor = getattr(self.generator, "size_divisor", 1)
        padded = pad(image, (0, -width % divisor, 0, -height % divisor), value=-1.0)
        translated = image_of(self.generator(padded))[0, 0, :height, :width].float()
        return np.asarray(to_gray_levels(translated).cpu())
