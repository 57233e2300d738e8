# SPDX-License-Identifier: Apache-2.0
"""What the tasks of the app share: they transform the images alone, as a bundle does, and write nothing themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monai.bundle import ConfigParser
from monai.transforms import SaveImaged
from monailabel.tasks.infer.basic_infer import BasicInferTask


class ConfigTask(BasicInferTask):
    """A task with the preprocessing and the postprocessing of a config, which [`read_transforms`][] sets."""

    def read_transforms(self, parser: ConfigParser) -> None:
        """Take the transforms of a config, without those that write."""
        self._preprocessing = parser.get_parsed_content("preprocessing")
        self._postprocessing = [
            step
            for step in parser.get_parsed_content("postprocessing").transforms
            if not isinstance(step, SaveImaged)
        ]

    def pre_transforms(self, data: Any = None) -> Sequence[Callable]:
        """Preprocessing of the bundle."""
        return [self._preprocessing]

    def run_pre_transforms(
        self, data: dict[str, Any], transforms: Sequence[Callable]
    ) -> dict[str, Any]:
        """Transform the image alone: MONAI's ``Spacingd`` takes ``image_path`` for metadata of ``image``."""
        return {**data, **super().run_pre_transforms({"image": data["image"]}, transforms)}

    def post_transforms(self, data: Any = None) -> Sequence[Callable]:
        """Postprocessing of the bundle, without writing."""
        return self._postprocessing

    def run_post_transforms(
        self, data: dict[str, Any], transforms: Sequence[Callable]
    ) -> dict[str, Any]:
        """Transform image and result alone."""
        images = {"image": data["image"], "pred": data["pred"]}
        return {**data, **super().run_post_transforms(images, transforms)}
