# SPDX-License-Identifier: Apache-2.0
"""Train a baseline on unpaired CT and MR, and translate with it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from contourdiff.bundle import config_files, read_config, run_inference_config, run_training
from contourdiff.data.atomic import write_text
from contourdiff.info import usable_device
from contourdiff.training.handlers import newest_checkpoint
from contourdiff_lab.baselines.handlers import RECORD

logger = logging.getLogger(__name__)


class Baseline(NamedTuple):
    """A method to compare with.

    Attributes:
        configs: its training config and overlays, by name.
        segments: whether it trains a segmentation network, ``segmentation.pt``, which is its result.
        needs: what it is trained on, in words.
    """

    configs: tuple[str, ...]
    segments: bool
    needs: str


BASELINES: dict[str, Baseline] = {
    "cyclegan": Baseline(("cyclegan",), segments=False, needs="CT and MR"),
    "synseg": Baseline(("cyclegan", "synseg"), segments=True, needs="CT with labels, and MR"),
    "cycada": Baseline(("cyclegan", "cycada"), segments=True, needs="CT with labels, and MR"),
    "maskgan": Baseline(("cyclegan", "maskgan"), segments=False, needs="CT and MR"),
}
SHARED = (
    "axcodes",
    "slice_axis",
    "spacing_mm",
    "window_hu",
    "filter_classes",
    "min_object_mm2",
    "max_hole_mm2",
)
"""Settings of a training that a translation takes over, beside ``network_def``."""
STARTED = "started.json"
"""Method and given settings of a training, in its folder from its start on."""
EXECUTION = {"device", "num_workers", "save_interval", "picture_interval"}
"""Settings that a training may go on, or be asked for again, with other values of."""


def train_baseline(
    method: str,
    ct_dir: str | Path,
    mr_dir: str | Path,
    output_dir: str | Path,
    *,
    bundle: str | Path | None = None,
    **settings: Any,
) -> Path:
    """Train a method, or go on from its newest checkpoint; a finished training is kept.

    Args:
        method: one of ``BASELINES``.
        ct_dir: folder of CT as for a translation, with ``labels/`` for the methods that need them.
        mr_dir: folder of MR images of other people.
        output_dir: folder of ``generator.pt``, ``segmentation.pt`` of some methods, checkpoints, pictures and, written
            last, ``trained.json``.
        bundle: folder of the bundle, see [`contourdiff.bundle.find_bundle`][].
        settings: settings of ``cyclegan.json`` and of the method's overlay, such as ``minutes=60``.

    Returns ``output_dir``. Raises ``ValueError`` for an unknown method or setting, no images, or a training in that
    folder of another method or with other settings, ``FileNotFoundError`` for a missing folder.
    """
    if method not in BASELINES:
        raise ValueError(f"expected a method out of {list(BASELINES)}, got {method!r}")
    output_dir = Path(output_dir)
    base, *overlays = BASELINES[method].configs
    files = config_files(bundle, overlays, base=base)
    settings = _with_device(settings)
    parser = read_config(files, settings)
    if (output_dir / RECORD).is_file():
        _check_same(read_record(output_dir), method, settings)
        logger.info("%s: kept, its training is finished", output_dir)
        return output_dir
    _record_start(output_dir, method, settings)
    paths = {
        "ct_dir": str(ct_dir),
        "mr_dir": str(mr_dir),
        "output_dir": str(output_dir),
        "method": method,
    }
    settings = {**settings, **paths, "bundle_root": parser["bundle_root"]}
    if (checkpoint := newest_checkpoint(output_dir)) is not None:
        logger.info("%s: training goes on from %s", output_dir, checkpoint.name)
        settings["resume_from"] = str(checkpoint)
    run_training(files, settings)
    return output_dir


def read_record(baseline_dir: str | Path) -> dict[str, Any]:
    """``trained.json`` of a finished training; ``FileNotFoundError`` without one, ``ValueError`` if it is no record."""
    path = Path(baseline_dir) / RECORD
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a finished training in {baseline_dir}, found no trained.json; train it first"
        )
    record: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or not {"method", "settings"} <= record.keys():
        raise ValueError(
            f"expected the record of a training in {path}, got something else; train it again"
        )
    return record


def translate_with_baseline(
    baseline_dir: str | Path,
    ct_dir: str | Path,
    output_dir: str | Path,
    *,
    bundle: str | Path | None = None,
    overlays: tuple[str, ...] = (),
    **settings: Any,
) -> Path:
    """Translate CT with the generator of a finished training: [`contourdiff.bundle.run_inference_config`][] in everything else.

    Args:
        baseline_dir: the ``output_dir`` of [`train_baseline`][].
        ct_dir: folder of ``<case>.nii.gz`` with optional ``labels/<case>.nii.gz``.
        output_dir: folder of ``<case>_mr.nii.gz``, ``_label.nii.gz``, ``_mr.json`` and ``_mr.png``.
        bundle: folder of the bundle.
        overlays: overlays after ``generator.json``.
        settings: settings of ``inference.json``; those of geometry and filter are the training's.

    Returns ``output_dir``. Raises ``FileNotFoundError`` without a finished training, and what ``translate`` raises.
    """
    trained = read_record(baseline_dir)["settings"]
    settings = {
        name: trained[name] for name in (*SHARED, "network_def") if name in trained
    } | settings
    settings = {"ckpt_path": str(Path(baseline_dir) / "generator.pt"), **_with_device(settings)}
    return run_inference_config(
        ct_dir, output_dir, bundle=bundle, overlays=("generator", *overlays), **settings
    )


def _with_device(settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings with a device for its name, if there is one; ``ValueError`` if torch cannot use it."""
    return {
        name: usable_device(value) if name == "device" else value
        for name, value in settings.items()
    }


def _record_start(output_dir: Path, method: str, settings: dict[str, Any]) -> None:
    """Write ``started.json``; refuse to go on from the checkpoints of a training that was started otherwise."""
    path, given = output_dir / STARTED, _plain({**settings, "method": method})
    if path.is_file() and next(output_dir.rglob("checkpoint_epoch=*.pt"), None):
        old = json.loads(path.read_text(encoding="utf-8"))
        _refuse(name for name in old.keys() | given.keys() if old.get(name) != given.get(name))
    write_text(path, json.dumps(given, indent=2) + "\n")


def _check_same(record: dict[str, Any], method: str, settings: dict[str, Any]) -> None:
    """Refuse a finished training of another method, or with other values of the given settings."""
    old = {"method": record["method"], **record["settings"]}
    wanted = _plain({**settings, "method": method})
    _refuse(name for name, value in wanted.items() if name in old and old[name] != value)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them, without those of execution."""
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return {name: value for name, value in plain.items() if name not in EXECUTION}


def _refuse(names: Iterable[str]) -> None:
    if other := sorted(names):
        raise ValueError(
            f"expected the settings of the training there, got another {other}; pass another output_dir"
        )
