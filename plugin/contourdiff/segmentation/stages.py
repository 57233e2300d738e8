# SPDX-License-Identifier: Apache-2.0
"""From labelled CT and unlabelled MR to a segmentation network for MR: pairs, training, results, report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from contourdiff.data.atomic import read_json, write_json
from contourdiff.data.checks import check_output_dir
from contourdiff.info import usable_device
from contourdiff.limits import MAX_SEED, SettingError, check_choice, check_number, check_whole
from contourdiff.pairs import folder, make_pairs
from contourdiff.segmentation.checks import check_mr, field_of_view_warnings
from contourdiff.segmentation.labels import bone_classes, pair_classes, write_classes
from contourdiff.segmentation.model_bundle import (
    PRESETS,
    steps_in,
    train_model,
    write_model_bundle,
)
from contourdiff.segmentation.report import write_transfer_report
from contourdiff.segmentation.results import mr_files, segment
from contourdiff.segmentation.self_training import (
    FURTHER_SHARE,
    train_further,
    write_agreed_labels,
)
from contourdiff.translation import run_settings

logger = logging.getLogger(__name__)

PAIRS = "pairs"
MODEL = "model"
REPORT = "report"
RECORD = "transfer.json"
CLASSES = "classes.json"
NETWORKS = "networks"
SELF_TRAINING = "self_training"
MAX_NETWORKS = 10
MAX_STEPS = 10_000_000


def transfer(
    ct: str | Path,
    mr: str | Path,
    output_dir: str | Path,
    *,
    label: str | Path | None = None,
    label_map: str | Path | None = None,
    classes: Mapping[str, str] | None = None,
    preset: str | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    networks: int = 1,
    seed: int = 0,
    shapes: int = 8,
    bone: Sequence[str] = (),
    device: torch.device | str | None = None,
    command: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Path:
    """Make a segmentation network for MR out of labelled CT, without any label of an MR.

    The CT are translated in several shapes to training pairs, a network is trained on them, and it segments the MR. Of
    several networks the first is then trained further, on the MR with the labels on which they agree, too. Each stage
    keeps what is finished, so a call that was interrupted goes on where it stopped.

    Args:
        ct: CT with labels, as for [`contourdiff.pairs.make_pairs`][].
        mr: an MR (NIfTI) or a folder of such; labels in ``<mr>/labels``, if there are any, are used to score alone.
        output_dir: folder of ``pairs``, ``model`` (a MONAI bundle) and ``report``; for several networks also of
            ``networks`` and ``self_training``.
        label: of a single CT.
        label_map: JSON file of classes, see [`contourdiff.data.label_map.LabelMap`][]. Pass it or ``classes``, or none:
            then every label value is a class.
        classes: classes by name, each with its label values, such as ``{"vertebra": "27-50", "sacrum": "26"}``.
        preset: ``"cpu"`` or ``"gpu"``, the size of the network; ``None`` takes that of the device.
        steps: of the training of each network; ``None`` takes those of the preset. The further training has a quarter.
        minutes: of all trainings, instead of ``steps``; the first steps are timed.
        networks: number of networks; 3 for [`contourdiff.segmentation.self_training`][].
        seed: of pairs and training.
        shapes: number of shapes of each CT.
        bone: classes that are bone, see [`contourdiff.pairs.make_pairs`][].
        device: of torch; ``None`` takes a GPU if there is one.
        command: for the model card.
        progress: show bars.
        settings: others of [`contourdiff.pairs.make_pairs`][].

    Returns:
        Folder of the bundle, ``<output_dir>/model``.

    Raises:
        ValueError: for MR that is CT, CT that is MR, a label without a class, or a folder of another transfer.
        FileNotFoundError: without CT or MR.
    """
    if label_map is not None and classes:
        raise SettingError("expected a label map or classes, got both; pass one")
    check_whole("networks", networks, 1, MAX_NETWORKS)
    check_whole("seed", seed, 0, MAX_SEED + 1 - networks)
    _check_budget(steps, minutes)
    output = Path(output_dir)
    chosen_device = _device(device)
    if preset is None:
        preset = "gpu" if chosen_device.type == "cuda" else "cpu"
    check_choice("preset", preset, PRESETS)
    images = mr_files(mr)
    check_output_dir(output)
    warnings = [*_ct_warnings(ct, output, label), *check_mr(images)]
    _log(warnings)
    if classes:
        label_map = write_classes(output / CLASSES, classes)

    logger.info("1 of 4: pairs, in %s", output / PAIRS)
    pairs = make_pairs(
        ct,
        output / PAIRS,
        label=label,
        label_map=label_map,
        seed=seed,
        shapes=shapes,
        bone=bone,
        device=chosen_device,
        progress=progress,
        **settings,
    )
    made = folder.pairs_in(pairs)
    slice_axis = made[0].slice_axis
    too_small = field_of_view_warnings(
        [pair.files.mr for pair in made], images.values(), slice_axis
    )
    _log(too_small)

    logger.info("2 of 4: training, in %s", output / MODEL)
    content = pair_classes(pairs)
    record = {
        "preset": preset,
        "seed": seed,
        "classes": content["classes"],
        "pairs": len(made),
        "networks": networks,
    }
    write_bundle = partial(
        write_model_bundle,
        label_map=content,
        preset=preset,
        slice_axis=slice_axis,
        bone=bone_classes(pairs),
        command=command,
    )
    model = output / MODEL
    if not model.is_dir():
        write_bundle(model)
    budget = _budget(output / RECORD, record, steps, minutes, model, pairs, chosen_device)
    _train(output, images, networks, write_bundle, seed, chosen_device, progress, budget)

    logger.info("3 of 4: segmentation of %d MR, in %s", len(images), output / REPORT)
    results = segment(model, mr, output / REPORT / "segmentations", device=chosen_device)

    logger.info("4 of 4: report")
    page = write_transfer_report(
        output / REPORT,
        model=model,
        mr=mr,
        results=results,
        pairs=pairs,
        warnings=[*warnings, *too_small],
        device=chosen_device,
    )
    logger.info("the model is in %s, the report in %s", model.resolve(), page.resolve())
    return model


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return usable_device(device)


def _check_budget(steps: int | None, minutes: float | None) -> None:
    if steps is not None and minutes is not None:
        raise SettingError("expected steps or minutes, got both; pass one")
    if steps is not None:
        check_whole("steps", steps, 1, MAX_STEPS)
    if minutes is not None:
        check_number("minutes", minutes, 0.1)


def _log(warnings: list[str]) -> None:
    for warning in warnings:
        logger.warning("%s", warning)


def _ct_warnings(ct: str | Path, output: Path, label: str | Path | None) -> list[str]:
    """Warnings about the number of CT; errors are those of [`contourdiff.translation.run_settings`][]."""
    _, inputs = run_settings(ct, output / PAIRS, label=label, fast=True)
    if len(inputs) > 1:
        return []
    return [
        "there is one CT: the network learns the anatomy of one patient, in several shapes; three or more are better"
    ]


def _train(
    output: Path,
    images: Mapping[str, Path],
    networks: int,
    write_bundle: Callable[[Path], Path],
    seed: int,
    device: torch.device,
    progress: bool,
    budget: Mapping[str, int],
) -> None:
    """Train the networks on the pairs, and the model further on MR with the labels of several networks."""
    pairs = output / PAIRS
    trained = [output / MODEL]
    if networks > 1:
        trained = [output / NETWORKS / str(number) for number in range(networks)]
    for number, path in enumerate(trained):
        if not path.is_dir():
            write_bundle(path)
        train_model(path, pairs, seed=seed + number, device=device, **budget)
    if networks > 1:
        agreed = output / SELF_TRAINING
        write_agreed_labels(trained, images, agreed, device=device, progress=progress)
        train_further(output / MODEL, trained[0], pairs, agreed, seed=seed, device=device, **budget)


def _budget(
    path: Path,
    record: Mapping[str, Any],
    steps: int | None,
    minutes: float | None,
    model: Path,
    pairs: Path,
    device: torch.device,
) -> dict[str, int]:
    """Steps of the training, recorded when they are known: a training that goes on has those that it began with.

    Raises ``ValueError`` if the folder is that of a transfer with other settings.
    """
    written = {**record, "steps": None}
    if path.is_file():
        written = {"networks": 1, **read_json(path)}
    for name, value in {**record, "steps": steps}.items():
        if name == "steps" and (value is None or written[name] is None):
            continue
        if written.get(name) != value:
            raise ValueError(
                f"expected a transfer with {name} {value!r} in {path.parent}, found one with {written.get(name)!r}; "
                "pass another folder, or the same settings"
            )
    if written["steps"] is not None:
        steps = written["steps"]
    elif minutes is not None:
        shares = record["networks"]
        if shares > 1:
            shares += FURTHER_SHARE
        steps = steps_in(60 * minutes / shares, model, pairs, device)
        logger.info("%d steps of training fit into %g minutes", steps, minutes)
    write_json(path, {**record, "steps": steps})
    return {} if steps is None else {"steps": steps}
