# SPDX-License-Identifier: Apache-2.0
"""Task that segments an MR by the bundle of a segmentation network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.bundle import BundleInferTask

from contourdiff.data.checks import check_volume


class SegmentationTask(BundleInferTask):
    """Segment an MR exactly as the bundle does; the classes are the labels of the model.

    ``bundle`` is the folder that ``contourdiff transfer`` wrote. Raises ``FileNotFoundError`` if it is none.
    """

    _one_at_a_time = threading.Lock()
    """A transform must not be shared by threads."""

    def __init__(self, bundle: str | Path) -> None:
        weights = Path(bundle) / "models" / "model.pt"
        if not weights.is_file():
            raise FileNotFoundError(
                f"expected the bundle of a segmentation network at {bundle}, found no {weights}; pass its folder"
            )
        super().__init__(
            str(bundle),
            {},
            type=InferType.SEGMENTATION,
            add_post_restore=False,  # the bundle inverts its transforms
            load_strict=True,
        )
        del self._config["model_filename"]  # there is one

    def __call__(
        self, request: Mapping[str, Any], callbacks: Any = None
    ) -> tuple[str | None, dict[str, Any]]:
        """Path of the segmentation of the MR ``request["image"]``, a temporary file, and what belongs to it.

        Raises ``ValueError`` for a file that is no volume.
        """
        check_volume(request["image"])
        with self._one_at_a_time:
            return super().__call__(request, callbacks)

    def run_pre_transforms(
        self, data: dict[str, Any], transforms: Sequence[Callable]
    ) -> dict[str, Any]:
        """Transform the image alone: MONAI's ``Spacingd`` takes ``image_path`` for metadata of ``image``."""
        return {**data, **super().run_pre_transforms({"image": data["image"]}, transforms)}

    def run_post_transforms(
        self, data: dict[str, Any], transforms: Sequence[Callable]
    ) -> dict[str, Any]:
        """Transform image and result alone."""
        images = {"image": data["image"], "pred": data["pred"]}
        return {**data, **super().run_post_transforms(images, transforms)}
