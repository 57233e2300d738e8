# SPDX-License-Identifier: Apache-2.0
"""Labels for MR that have none: what several networks agree on, to train further on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd
from tqdm import tqdm

from contourdiff.bundle import read_config
from contourdiff.config_checks import plain_errors
from contourdiff.data.atomic import atomic_write, link_file, read_json, write_json
from contourdiff.data.label_map import LabelMap
from contourdiff.inference.acceleration import bfloat16_pays
from contourdiff.segmentation.model_bundle import INFERENCE, TRAIN, train_model
from contourdiff.training.inferer import in_bfloat16
from contourdiff.weights import load_weights

logger = logging.getLogger(__name__)

LABELS = "labels"
CONFIDENCE = "confidence.json"
"""Confidence of every MR, by case."""
KEPT_SHARE = 0.7
"""Of the MR: those with the highest confidence."""
FURTHER_SHARE = 0.25
"""Steps of the further training, as a share of those of each network."""


class Segmenter:
    """A trained segmentation network, from an MR file to the probabilities of its classes.

    Args:
        model: folder of the bundle.
        device: of torch.
    """

    def __init__(self, model: Path, device: torch.device) -> None:
        config = read_config([str(model / INFERENCE)], {"device": device, "dataset_dir": model})
        with plain_errors():
            network = config.get_parsed_content("network")
            self.preprocessing = config.get_parsed_content("preprocessing")
            self.inferer = config.get_parsed_content("inferer")
        self.network = load_weights(network, model / "models" / "model.pt", device)
        self.device = device
        self.invert = Invertd(
            keys="pred", transform=self.preprocessing, orig_keys="image", nearest_interp=False
        )

    @torch.inference_mode()
    def __call__(self, image: Path) -> np.ndarray:
        """Probabilities of background and classes on the grid of the file, ``(classes + 1, ...)``, float32."""
        item = self.preprocessing({"image": str(image)})
        batch = item["image"][None].to(self.device)
        with in_bfloat16(batch, bfloat16_pays(self.device, "openvino")):
            output = self.inferer(batch, self.network)
        probabilities = MetaTensor(output.float().softmax(dim=1)[0])
        probabilities.copy_meta_from(item["image"])
        inverted = self.invert({**item, "pred": probabilities})["pred"]
        return np.asarray(inverted.cpu(), dtype=np.float32)


def write_agreed_labels(
    models: Sequence[Path],
    images: Mapping[str, Path],
    folder: Path,
    *,
    device: torch.device,
    progress: bool = True,
) -> Path:
    """Label MR by the mean of several networks, and keep those on which it is most confident.

    The confidence of an MR is the Dice between the probabilities of a class and its voxels, the mean over the classes
    found. The MR that are kept, [`KEPT_SHARE`][] of all, are linked beside ``labels``, a layout of
    [`contourdiff.data.training_cases.labelled_cases`][]. An interrupted call goes on.

    Args:
        models: folders of trained bundles of the same classes.
        images: MR files by case.
        folder: to write to.
        device: of torch.
        progress: show a bar.

    Returns ``folder``. Raises ``ValueError`` if the networks find nothing in any MR.
    """
    label_map = LabelMap(models[0] / "label_map.json")
    values = np.zeros(len(label_map.classes) + 1, dtype=np.int32)
    for number, listed in label_map.values("ct").items():
        values[number] = listed[0]
    background_weight = read_json(models[0] / TRAIN)["background_weight"]
    (folder / LABELS).mkdir(parents=True, exist_ok=True)
    record = folder / CONFIDENCE
    confidences: dict[str, float] = read_json(record) if record.is_file() else {}
    missing = [case for case in images if case not in confidences]
    segmenters = [Segmenter(model, device) for model in models] if missing else []
    for case in tqdm(missing, "labels", unit="MR", disable=not progress):
        probabilities = [segment(images[case]) for segment in segmenters]
        label, confidence = agreed_label(probabilities, background_weight)
        source = nib.load(images[case])
        voxels = values[label].reshape(source.shape)
        with atomic_write(folder / LABELS / f"{case}.nii.gz") as aside:
            nib.save(nib.Nifti1Image(voxels, source.affine), aside)
        confidences[case] = confidence
        write_json(record, confidences)
    _link(folder, images, {case: confidences[case] for case in images})
    return folder


def agreed_label(
    probabilities: Sequence[np.ndarray], background_weight: float = 1.0
) -> tuple[np.ndarray, float]:
    """Most probable classes by the mean of several networks, and the confidence in them.

    A network that was trained with a weight of the background takes what is uncertain for background. A second network
    that learns this with the same weight would do so twice, so that thin parts vanish: the weight is taken out.

    Args:
        probabilities: ``(classes + 1, ...)`` of each network, background first.
        background_weight: of their training.

    Returns class numbers ``(...)`` and a number in [0, 1], 0 where there is nothing but background.

    Examples:
        >>> sure, unsure = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.4, 0.6], [0.6, 0.4]])
        >>> label, confidence = agreed_label([sure, unsure])
        >>> label, round(confidence, 2)
        (array([1, 0]), 0.8)
    """
    mean = np.mean(probabilities, axis=0)
    mean[0] /= background_weight
    mean /= mean.sum(axis=0)
    label = mean.argmax(axis=0)
    confidences = []
    for number in range(1, len(mean)):
        found = label == number
        if found.any():
            both = 2 * mean[number][found].sum(dtype=np.float64)
            total = mean[number].sum(dtype=np.float64) + found.sum()
            confidences.append(both / total)
    return label, float(np.mean(confidences)) if confidences else 0.0


def train_further(
    model: Path,
    start: Path,
    pairs: Path,
    agreed: Path,
    *,
    seed: int,
    device: torch.device,
    steps: int | None = None,
) -> Path:
    """Train a bundle from the weights of another one, on pairs and on the MR of [`write_agreed_labels`][], seen twice.

    Args:
        model: folder of the bundle to train.
        start: folder of the bundle whose training ``steps`` had, by default those of its ``train.json``.
        pairs: folder of pairs.
        agreed: folder of MR with the labels of networks.
        seed: of the training.
        device: of torch.
        steps: of the training of ``start``.

    Returns the path of the weights.
    """
    if steps is None:
        steps = read_json(start / TRAIN)["steps"]
    settings = {
        "network#path": start / "models" / "model.pt",
        "steps": max(1, round(FURTHER_SHARE * steps)),
        "seed": seed,
        "device": device,
    }
    return train_model(model, [pairs, agreed, agreed], **settings)


def _link(folder: Path, images: Mapping[str, Path], confidences: Mapping[str, float]) -> None:
    """Link the MR with the highest confidence."""
    found = sorted(confidences, key=lambda case: (-confidences[case], case))
    kept = found[: max(1, round(KEPT_SHARE * len(found)))]
    kept = [case for case in kept if confidences[case] > 0]
    if not kept:
        raise ValueError(
            f"expected networks that find a class in the MR, got none in {len(found)} MR; look at the pairs, or train "
            "one network alone"
        )
    for case, image in images.items():
        link = folder / image.name
        link.unlink(missing_ok=True)
        if case in kept:
            link_file(image, link)
    logger.info("%d of %d MR are trained on, with labels of the networks", len(kept), len(found))
