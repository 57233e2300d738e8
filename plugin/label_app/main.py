# SPDX-License-Identifier: Apache-2.0
"""MONAI Label app that serves the translator of the bundle; see docs/monai_label.md."""

from __future__ import annotations

import logging
import os
from typing import Any

from fastapi import HTTPException
from lib.infers.segmentation import SegmentationTask
from lib.infers.translation import translation_tasks
from lib.server import UPLOADS, Interrupted, Signals, is_inside
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask

from contourdiff import __version__
from contourdiff.config_checks import root_cause

logger = logging.getLogger(__name__)

NO_IMAGE = "expected the id of an image in the studies, a session or an upload, found none; upload the CT first"
ENDS = "expected a running server, got a signal that ends it; send the request again later"


class ContourdiffApp(MONAILabelApp):
    """One model for each contrast of the bundle: ``contourdiff_t1``, ``_t2`` and ``_t2_space``.

    With ``segmentation``, the folder of a segmentation network, there is the model ``segmentation``, too.

    Args:
        app_dir: this folder.
        studies: folder or DICOMweb server of the images.
        conf: pairs of ``--conf``: ``segmentation``, and those of [`lib.infers.translation.translation_tasks`][].
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self._signals = Signals()
        super().__init__(app_dir, studies, conf, "contourdiff", "Translate CT to MR", __version__)
        self._signals.listen()

    def init_infers(self) -> dict[str, InferTask]:
        """Load every model.

        Whether an error is printed, and in how many lines, is the server's; so the reason is logged here.
        """
        try:
            tasks: dict[str, InferTask] = {**translation_tasks(self.conf)}
            if "segmentation" in self.conf:
                tasks["segmentation"] = SegmentationTask(self.conf["segmentation"])
            return tasks
        except (ValueError, OSError) as error:
            logger.error("the server does not start: %s", error)
            raise

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Translate an image of the studies, a session or an upload.

        An unknown model or image has status 404, any other error of the input 422, a signal 503, each with its message,
        which names no path of the server. The files of a request that failed are removed.
        """
        model = request.get("model")
        if model not in self._infers:
            self._remove_uploads_of(request)
            raise HTTPException(
                404, f"expected one of the models {sorted(self._infers)}, got {model!r}"
            )
        datastore = datastore or self.datastore()
        try:
            with self._signals.request():
                image = self._servable(request["image"], datastore)
                return super().infer({**request, "image": image}, datastore)
        except Interrupted as error:
            raise HTTPException(503, ENDS) from error
        except Exception as error:
            self._remove_uploads_of(request)
            cause = root_cause(error)
            if isinstance(cause, FileNotFoundError):
                raise HTTPException(404, NO_IMAGE) from error
            if isinstance(cause, ValueError):
                raise HTTPException(422, self._without_folders(str(cause))) from error
            raise

    def _servable(self, image: Any, datastore: Any) -> str:
        """The id of an image of the studies, or the path of a file of a session or an upload.

        MONAI Label itself takes the path of any file, from the address or ``params``.
        """
        if not isinstance(image, str):
            raise FileNotFoundError(NO_IMAGE)
        if image in datastore.list_images():
            return datastore.get_image_uri(image) if os.path.exists(image) else image
        folders = self._folders_of_requests()
        if os.path.isabs(image) and any(is_inside(image, folder) for folder in folders):
            return image
        raise FileNotFoundError(NO_IMAGE)

    def _folders_of_requests(self) -> list[str]:
        sessions = self.sessions()
        return [UPLOADS] if sessions is None else [UPLOADS, sessions.store_path]

    def _remove_uploads_of(self, request: dict[str, Any]) -> None:
        """Remove what MONAI Label leaves of a request that failed."""
        for key in ("image", "label"):
            path = request.get(key)
            if isinstance(path, str) and os.path.isfile(path) and is_inside(path, UPLOADS):
                os.unlink(path)

    def _without_folders(self, text: str) -> str:
        """A message that names files alone."""
        for folder in (*self._folders_of_requests(), self.studies):
            for name in (folder, os.path.realpath(folder)):
                text = text.replace(f"{name.rstrip(os.sep)}{os.sep}", "")
        return text
