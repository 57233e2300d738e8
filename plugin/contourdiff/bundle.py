# SPDX-License-Identifier: Apache-2.0
"""Translation for Python users: the bundle, run from a function."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai.bundle
from monai.bundle import ConfigWorkflow

from contourdiff.phantom import write_phantom

BUNDLE_NAME = "contourdiff_ct2mr"


def find_bundle(bundle: str | Path | None = None) -> Path:
    """Folder of the bundle: the given one, or the one beside an editable install of this package.

    Raises:
        FileNotFoundError: if there is no ``configs/inference.json`` in it.
    """
    root = Path(bundle) if bundle else Path(__file__).resolve().parents[2] / "bundles" / BUNDLE_NAME
    if not (root / "configs" / "inference.json").is_file():
        raise FileNotFoundError(f"expected the bundle {BUNDLE_NAME} at {root}, found none; pass its folder as bundle")
    return root


def inference_configs(bundle: str | Path | None = None, overlays: Sequence[str] = ()) -> list[str]:
    """Paths of ``inference.json`` and of its overlays, given by name.

    Raises:
        FileNotFoundError: for a missing bundle or overlay.
    """
    configs = find_bundle(bundle) / "configs"
    files = [configs / f"{name}.json" for name in ("inference", *overlays)]
    if missing := [file.stem for file in files if not file.is_file()]:
        raise FileNotFoundError(f"expected overlays of inference.json in {configs}, found no {missing}")
    return [str(file) for file in files]


def translate(
    dataset_dir: str | Path,
    output_dir: str | Path,
    *,
    bundle: str | Path | None = None,
    overlays: Sequence[str] = (),
    **settings: Any,
) -> Path:
    """Translate every CT of a folder: ``python -m monai.bundle run`` on ``inference.json``, as a function.

    Args:
        dataset_dir: folder of ``<case>.nii.gz`` with optional ``labels/<case>.nii.gz``.
        output_dir: where ``<case>_mr.nii.gz``, ``_label.nii.gz``, ``_mr.json`` and ``_mr.png`` go.
        bundle: folder of the bundle, see :func:`find_bundle`.
        overlays: names of overlay configs, in order: ``"fast"``, ``"lumbar"``, ``"hip_thigh"``.
        settings: knobs of ``inference.json``, such as ``seed=1`` or ``ckpt_path="model.pt"``.

    Returns:
        ``output_dir``.

    Raises:
        FileNotFoundError: for a missing bundle or overlay.
        SystemExit: with a message if nothing can be translated; with status 1 if some case could not be.
    """
    monai.bundle.run(
        config_file=inference_configs(bundle, overlays),
        dataset_dir=str(dataset_dir),
        output_dir=str(output_dir),
        **settings,
    )
    return Path(output_dir)


def run_example(folder: str | Path, bundle: str | Path | None = None) -> Path:
    """Make the digital lumbar phantom in ``<folder>/ct`` and translate it, fast, to ``<folder>/mr``."""
    ct = Path(folder) / "ct"
    write_phantom(ct)
    return translate(ct, Path(folder) / "mr", bundle=bundle, overlays=("fast",), overwrite=True)


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
