# SPDX-License-Identifier: Apache-2.0
"""Train a baseline on unpaired CT and MR, and translate with it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from contourdiff.bundle import run_config, run_inference_config
from contourdiff.data.atomic import write_text
from contourdiff.info import usable_device
from contourdiff.training.handlers import newest_checkpoint
from contourdiff_lab.baselines.handlers import RECORD
from contourdiff_lab.config_files import lab_config, lab_config_files, read_lab_config

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
"""Every baseline by name."""
TRAINED_SETTINGS = (
    "axcodes",
    "slice_axis",
    "spacing_mm",
    "window_hu",
    "filter_classes",
    "min_object_mm2",
    "max_hole_mm2",
    "network_def",
)
"""Settings of a training that a translation takes over."""
STARTED = "started.json"
"""Method and settings of a training as they were passed, in its folder from its start on."""
PACKAGE = "contourdiff_lab.baselines"
FORMER_PACKAGE = "contourdiff.rivals"
EXECUTION = {"device", "num_workers", "save_interval", "picture_interval"}
"""Settings that may differ when a training goes on, or is asked for again."""


def train_baseline(
    method: str,
    ct_dir: str | Path,
    mr_dir: str | Path,
    output_dir: str | Path,
    *,
    bundle: str | Path | None = None,
    **settings: Any,
) -> Path:
    """Train a baseline, or go on from its newest checkpoint; a finished training is kept.

    Args:
        method: one of ``BASELINES``.
        ct_dir: folder of CT as for a translation, with ``labels/`` for the methods that need them.
        mr_dir: folder of MR images of other people.
        output_dir: folder of ``generator.pt``, ``segmentation.pt`` of some methods, checkpoints, pictures and, written
            last, ``trained.json``.
        bundle: folder of the bundle, see [`contourdiff.bundle.find_bundle`][].
        settings: settings of ``cyclegan.json`` and of the method's overlay, such as ``minutes=60``.

    Returns:
        ``output_dir``.

    Raises:
        ValueError: for an unknown method or setting, no images, or a training in ``output_dir`` of another method or
            with other settings.
        FileNotFoundError: for a missing folder.
    """
    if method not in BASELINES:
        raise ValueError(f"expected a method out of {list(BASELINES)}, got {method!r}")
    output_dir = Path(output_dir)
    settings = _with_device(settings)
    configs = BASELINES[method].configs
    parser = read_lab_config(configs, settings, bundle)
    if (output_dir / RECORD).is_file():
        _check_finished(output_dir, method, settings)
        logger.info("%s: kept, its training is finished", output_dir)
        return output_dir
    _record_start(output_dir, method, settings)
    root = parser.get_parsed_content("bundle_root")
    settings = {
        **settings,
        "ct_dir": str(ct_dir),
        "mr_dir": str(mr_dir),
        "output_dir": str(output_dir),
        "method": method,
        "bundle_root": root,
        "meta_file": f"{root}/configs/metadata.json",
    }
    checkpoint = newest_checkpoint(output_dir)
    if checkpoint is not None:
        logger.info("%s: training goes on from %s", output_dir, checkpoint.name)
        settings["resume_from"] = str(checkpoint)
    run_config("train", lab_config_files(configs, bundle), settings)
    return output_dir


def read_record(baseline_dir: str | Path) -> dict[str, Any]:
    """``trained.json`` of a finished training.

    Raises:
        FileNotFoundError: without one.
        ValueError: if it is no record.
    """
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
    """Translate CT with the generator of a finished training, as [`contourdiff.bundle.run_inference_config`][] does.

    Args:
        baseline_dir: the ``output_dir`` of [`train_baseline`][].
        ct_dir: folder of ``<case>.nii.gz`` with optional ``labels/<case>.nii.gz``.
        output_dir: folder of ``<case>_mr.nii.gz``, ``_label.nii.gz``, ``_mr.json`` and ``_mr.png``.
        bundle: folder of the bundle.
        overlays: overlays after ``generator.json``.
        settings: settings of ``inference.json``; by default those of geometry and filter are the training's.

    Returns:
        ``output_dir``.

    Raises:
        FileNotFoundError: without a finished training, and as ``run_inference_config``.
        ValueError: as ``run_inference_config``.
    """
    trained = read_record(baseline_dir)["settings"]
    taken_over = {name: trained[name] for name in TRAINED_SETTINGS if name in trained}
    taken_over["network_def"] = _with_present_package(taken_over["network_def"])
    all_settings = {
        "ckpt_path": str(Path(baseline_dir) / "generator.pt"),
        **taken_over,
        **_with_device(settings),
    }
    generator = lab_config("generator")
    return run_inference_config(
        ct_dir, output_dir, bundle=bundle, overlays=(generator, *overlays), **all_settings
    )


def _with_present_package(network_def: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded network, found where it is now if the training is older than its package."""
    target = network_def["_target_"]
    if target.startswith(FORMER_PACKAGE):
        target = PACKAGE + target.removeprefix(FORMER_PACKAGE)
    return {**network_def, "_target_": target}


def _with_device(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, the device as torch's if there is one; ``ValueError`` if torch cannot use it."""
    if "device" not in settings:
        return dict(settings)
    return {**settings, "device": usable_device(settings["device"])}


def _record_start(output_dir: Path, method: str, settings: Mapping[str, Any]) -> None:
    """Write ``started.json``; refuse to go on from the checkpoints of a training that was started otherwise."""
    path = output_dir / STARTED
    wanted = _comparable(method, settings)
    has_checkpoints = any(output_dir.rglob("checkpoint_epoch=*.pt"))
    if path.is_file() and has_checkpoints:
        started = json.loads(path.read_text(encoding="utf-8"))
        names = started.keys() | wanted.keys()
        _refuse(name for name in names if started.get(name) != wanted.get(name))
    write_text(path, json.dumps(wanted, indent=2) + "\n")


def _check_finished(output_dir: Path, method: str, settings: Mapping[str, Any]) -> None:
    """Refuse a finished training of another method, or with other values of these settings."""
    record = read_record(output_dir)
    trained = {**record["settings"], "method": record["method"]}
    wanted = _comparable(method, settings)
    names = wanted.keys() & trained.keys()
    _refuse(name for name in names if trained[name] != wanted[name])


def _comparable(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Method and settings as JSON holds them, without those of execution."""
    plain = json.loads(json.dumps({**settings, "method": method}, default=str))
    return {name: value for name, value in plain.items() if name not in EXECUTION}


def _refuse(names: Iterable[str]) -> None:
    """``ValueError`` if there are names of settings that differ."""
    differing = sorted(names)
    if differing:
        raise ValueError(
            f"expected the settings of the training there, got another {differing}; pass another output_dir"
        )
