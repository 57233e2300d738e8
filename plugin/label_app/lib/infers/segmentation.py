# SPDX-License-Identifier: Apache-2.0
"""Task that segments an MR by the bundle of a segmentation network."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monailabel.interfaces.tasks.infer_v2 import InferType

from contourdiff.bundle import read_config
from contourdiff.data.atomic import read_json
from contourdiff.data.checks import check_volume
from contourdiff.segmentation.model_bundle import INFERENCE, METADATA
from contourdiff.segmentation.results import check_config
from contourdiff.weights import load_weights
from lib.infers.config_task import ConfigTask
from lib.infers.writing import NIFTI, write_result


class SegmentationTask(ConfigTask):
    """Segment an MR exactly as the bundle does; its classes are the labels of the model.

    ``bundle`` is the folder that ``contourdiff transfer`` wrote. Raises ``OSError`` or ``ValueError`` if it is none.
    """

    _one_at_a_time = threading.Lock()
    """A transform must not be shared by threads."""

    def __init__(self, bundle: str | Path) -> None:
        root = Path(bundle)
        check_config(root)
        parser = read_config(str(root / INFERENCE), {})
        metadata = read_json(root / METADATA)
        self._version = metadata["version"]
        self._device = parser.get_parsed_content("device")
        self._inferer = parser.get_parsed_content("inferer")
        self.read_transforms(parser)
        network = parser.get_parsed_content("network")
        load_weights(network, root / "models" / "model.pt", self._device)
        labels = {}
        output = metadata["network_data_format"]["outputs"]["pred"]
        for number, name in output["channel_def"].items():
            if int(number) > 0:
                labels[name] = int(number)
        super().__init__(None, network, InferType.SEGMENTATION, labels, 3, metadata["description"])

    def info(self) -> dict[str, Any]:
        """What a client sees of the model."""
        return {**super().info(), "version": self._version}

    def __call__(
        self, request: Mapping[str, Any], callbacks: Any = None
    ) -> tuple[str | None, dict[str, Any]]:
        """Path of the segmentation of the MR ``request["image"]``, a temporary file, and what belongs to it.

        Raises ``ValueError`` for a file that is no volume.
        """
        check_volume(request["image"])
        with self._one_at_a_time:
            return super().__call__(request, callbacks)

    def run_inferer(
        self, data: dict[str, Any], convert_to_batch: bool = True, device: str = ""
    ) -> dict[str, Any]:
        """Output ``pred`` of the network for ``image``, ``(1, H, W, D)``: a channel for each class."""
        image = data["image"].as_tensor()[None].to(self._device)
        with torch.no_grad():
            output = self._inferer(image, self.network)
        return {**data, "pred": output[0].cpu()}

    def writer(
        self, data: dict[str, Any], extension: str | None = None, dtype: str | None = None
    ) -> tuple[str, dict]:
        """Write ``pred``, class numbers in uint8; by default NIfTI with the header of the MR."""
        extension = extension or data.get("result_extension", NIFTI[0])
        pred = data["pred"][0].to(torch.uint8)
        return write_result(data, pred, extension, "uint8", {})
