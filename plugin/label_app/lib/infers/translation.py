# SPDX-License-Identifier: Apache-2.0
"""Task that translates a CT to MR by the components of the bundle's config."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monailabel.interfaces.tasks.infer_v2 import InferType

from contourdiff.bundle import config_files, read_config
from contourdiff.cli.commands import parse_value
from contourdiff.config_checks import CHECKS, check_values, root_cause
from contourdiff.data.atomic import read_json
from contourdiff.data.checks import check_case
from contourdiff.data.translation_cases import contrast_labels
from contourdiff.inference.acceleration import release_heap
from contourdiff.limits import MAX_SEED, check_whole
from contourdiff.transforms.gray_levels import GrayLevels
from lib.infers.config_task import ConfigTask
from lib.infers.writing import NIFTI, write_result

logger = logging.getLogger(__name__)

NO_SETTINGS = ("bundle", "overlays", "contrast", "segmentation")
EXTENSIONS = (*NIFTI, ".nrrd")
PARAMETERS = ("seed", "result_extension", "result_dtype")
OF_THE_SERVER = (
    *("model", "image", "description", "session", "client_id"),
    *("save_label", "label_tag", "logging", "timeout", "device"),
    *("_id", "_image_id", "images", "max_batch_size", "multi_gpu", "gpus"),
)
"""What MONAI Label and its clients add to a request."""


def translation_tasks(conf: Mapping[str, str]) -> dict[str, TranslationTask]:
    """A task for each contrast, by the name of its model; they share the network.

    Args:
        conf: pairs of ``--conf``. ``bundle`` is the folder of the bundle, ``overlays`` names of overlays with commas
            between them, or ``none`` (``fast`` unless given), ``contrast`` the contrasts to serve (all unless given);
            the others are settings of ``inference.json``.

    Raises:
        ValueError: for an unknown setting or contrast, a value out of range, or unfit weights.
        OSError: for a missing overlay or missing weights.
    """
    overlays = conf.get("overlays", "fast")
    names = [] if overlays == "none" else overlays.split(",")
    settings = {}
    for name, value in conf.items():
        if name not in NO_SETTINGS:
            settings[name] = parse_value(value)
    parser = read_config(config_files(conf.get("bundle"), names), settings)
    contrasts = parser.get_parsed_content("contrasts")
    labels = contrast_labels(conf.get("contrast", contrasts), contrasts)
    tasks = {}
    try:
        check_values({name: parser.get_parsed_content(name) for name in CHECKS if name in parser})
        for contrast, label in labels.items():
            model = f"contourdiff_{contrast}" if contrast else "contourdiff"
            tasks[model] = TranslationTask(parser, label)
    except RuntimeError as error:
        raise root_cause(error) from None
    return tasks


class TranslationTask(ConfigTask):
    """Translate a CT to MR in one contrast, exactly as the bundle does.

    The network is loaded once, with strict keys. Everything between reading and writing is the bundle's. Volumes are
    NIfTI files; the result is on the grid of its CT, in gray levels 0 to 255.

    ``BundleInferTask`` does not fit: it builds a single network from ``network_def`` and one weights file, passes its
    own items through the transforms, and offers ``refiner.pt`` as another choice of weights.

    Args:
        parser: parsed ``inference.json`` with its overlays and settings.
        class_label: position of the contrast in the network's ``contrasts``; ``None`` for a network of one.
    """

    _one_at_a_time = threading.Lock()
    """A transform must not be shared by threads, nor the memory of the device."""

    def __init__(self, parser: ConfigParser, class_label: int | None) -> None:
        root = Path(parser.get_parsed_content("bundle_root"))
        metadata = read_json(root / "configs" / "metadata.json")
        self._version = metadata["version"]
        self._class_label = class_label
        self._device = parser.get_parsed_content("device")
        self._inferer = parser.get_parsed_content("inferer")
        self.read_transforms(parser)
        self._outputs = parser.get_parsed_content("outputs")
        self._dtype = parser["output_dtype"]
        network = parser.get_parsed_content("network").eval()
        config = {"seed": parser.get_parsed_content("seed")}
        super().__init__(
            None, network, InferType.OTHERS, {}, 3, metadata["description"], config=config
        )
        del self._config["device"]  # the server's, not a choice of the client

    def info(self) -> dict[str, Any]:
        """What a client sees of the model."""
        return {**super().info(), "version": self._version}

    def __call__(
        self, request: Mapping[str, Any], callbacks: Any = None
    ) -> tuple[str | None, dict[str, Any]]:
        """Path of the MR of the CT ``request["image"]``, a temporary file, and what belongs to it.

        The request may hold ``seed``, ``result_extension`` (``.nii.gz``, ``.nii`` or ``.nrrd``) and ``result_dtype``
        (``float32`` or ``uint8``).

        Raises:
            ValueError: for any other, a value out of range, and a file that is no CT.
            FileNotFoundError: without the file.
        """
        checked = {
            "result_extension": NIFTI[0],
            "result_dtype": self._dtype,
            **self._config,
            **request,
        }
        _check(checked)
        with self._one_at_a_time:
            try:
                return super().__call__(checked, callbacks)
            finally:
                release_heap()

    def run_inferer(
        self, data: dict[str, Any], convert_to_batch: bool = True, device: str = ""
    ) -> dict[str, Any]:
        """Gray levels ``pred`` of the contours ``image``, ``(1, H, W, D)`` both.

        Raises:
            ValueError: if no slice has a contour.
        """
        self._inferer.painter.seed = data["seed"]
        (result,) = self._inferer.translate(
            [data["image"].to(self._device)], self.network, class_labels=[self._class_label]
        )
        warning = self._outputs.contour_warning(result, Path(data["image_path"]))
        if warning is not None:
            logger.warning("%s: %s", Path(data["image_path"]).name, warning)
        return {**data, "pred": result.gray_levels.cpu()}

    def writer(
        self, data: dict[str, Any], extension: str | None = None, dtype: str | None = None
    ) -> tuple[str, dict]:
        """Write ``pred``: NIfTI with the header of the CT, anything else by MONAI Label; ``uint8`` is rounded."""
        extension = extension or data["result_extension"]
        dtype = dtype or data["result_dtype"]
        pred = GrayLevels(dtype)(data["pred"])[0]
        return write_result(data, pred, extension, dtype, {"seed": data["seed"]})


def _check(request: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for what cannot be translated or written, before any work."""
    unknown = [name for name in request if name not in (*PARAMETERS, *OF_THE_SERVER)]
    if unknown:
        raise ValueError(
            f"expected parameters of {list(PARAMETERS)}, got {unknown}; settings of inference.json are given to the "
            "server, by --conf"
        )
    check_whole("seed", request["seed"], 0, MAX_SEED)
    if request["result_extension"] not in EXTENSIONS:
        raise ValueError(
            f"expected result_extension to be one of {EXTENSIONS}, got {request['result_extension']!r}"
        )
    GrayLevels(request["result_dtype"])
    if not Path(request["image"]).is_file():
        raise FileNotFoundError(f"expected a file, found none at {request['image']}")
    warnings = check_case(request["image"])
    if warnings:
        raise ValueError(warnings[0])
