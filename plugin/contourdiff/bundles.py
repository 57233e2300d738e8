# SPDX-License-Identifier: Apache-2.0
"""Where a bundle lies, so that it runs from any working directory."""

from __future__ import annotations

import inspect

from monai.bundle import ConfigWorkflow


def bundle_root() -> str:
    """Folder of the bundle whose config is being parsed: the parent of its ``configs``; ``"."`` outside a workflow.

    A config cannot name its own place, and MONAI does not pass it on; but the ``ConfigWorkflow`` that evaluates the
    config knows, and it is among the callers. Pass ``--bundle_root`` to decide otherwise.
    """
    frame = inspect.currentframe()
    while frame is not None:
        workflow = frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            return str(workflow.config_root_path.resolve().parent)
        frame = frame.f_back
    return "."
