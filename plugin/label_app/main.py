# SPDX-License-Identifier: Apache-2.0
"""MONAI Label app that serves the translator of the bundle; see docs/monai_label.md."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException
from lib.infers.translation import TranslationTask, translation_tasks
from monailabel.interfaces.app import MONAILabelApp

from contourdiff import __version__
from contourdiff.config_checks import root_cause


class ContourdiffApp(MONAILabelApp):
    """One model for each contrast of the bundle: ``contourdiff_t1`` and ``contourdiff_t2``.

    Args:
        app_dir: this folder.
        studies: folder or DICOMweb server of the images.
        conf: pairs of ``--conf``, see [`lib.infers.translation.translation_tasks`][].
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        super().__init__(app_dir, studies, conf, "contourdiff", "Translate CT to MR", __version__)

    def init_infers(self) -> dict[str, TranslationTask]:
        """Load every model."""
        return translation_tasks(self.conf)

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Translate; an unknown model or image has status 404, any other error of the input 422, with its message."""
        model = request.get("model")
        if model not in self._infers:
            raise HTTPException(
                404, f"expected one of the models {sorted(self._infers)}, got {model!r}"
            )
        try:
            return super().infer(request, datastore)
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, FileNotFoundError):
                raise HTTPException(404, str(cause)) from error
            if isinstance(cause, ValueError):
                raise HTTPException(422, str(cause)) from error
            raise
