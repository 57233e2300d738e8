# SPDX-License-Identifier: Apache-2.0
"""Trainings of several stages: each is finished once, and the last step records them all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.handlers import ProgressBar
from monai.data import DataLoader
from monai.engines import SupervisedTrainer, Trainer
from monai.handlers import TensorBoardStatsHandler
from torch import Tensor, nn
from torch.utils.data import Dataset, RandomSampler

from contourdiff.data.atomic import write_text
from contourdiff.training.handlers import (
    Checkpoints,
    EpochSeeder,
    WeightsSaver,
    loss_of_output,
    newest_checkpoint,
)
from contourdiff_lab.baselines.feature_alignment import FeatureAlignment, ScoreDiscriminator
from contourdiff_lab.baselines.handlers import RECORD, TrainingBudget, counts

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Stage:
    """A training that is one of several in a row.

    Attributes:
        name: of the stage, and of its folder in ``output_dir``.
        trainer: MONAI's, with its handlers.
        budget: time of the stage.
        batch_size: images of each side in an iteration.
        output_dir: folder of the whole training.
    """

    name: str
    trainer: Trainer
    budget: TrainingBudget
    batch_size: int
    output_dir: str | Path


@dataclass(frozen=True)
class StageSettings:
    """What the stages that train a segmentation network have in common.

    Attributes:
        output_dir: folder of the whole training; a stage writes to its folder in it.
        device: of the networks.
        seed: of the draws of every epoch.
        loss: of scores ``(B, C, H, W)`` and class numbers ``(B, 1, H, W)``.
        batch_size: slices in an iteration.
        epoch_length: iterations of an epoch.
        num_workers: processes that load slices.
        save_interval: epochs between checkpoints.
        amp: bfloat16; in the first stage on a GPU alone.
        minutes: wall clock of all stages together; ``None`` for no limit.
        parts: share of each stage in ``minutes``; a stage with 0 has no limit but its epochs.
    """

    output_dir: str
    device: torch.device
    seed: int
    loss: Loss
    batch_size: int
    epoch_length: int
    num_workers: int
    save_interval: int
    amp: bool
    minutes: float | None
    parts: Mapping[str, float]


def stage_minutes(stage: str, minutes: float | None, parts: Mapping[str, float]) -> float | None:
    """Wall clock of a stage, in proportion to its part of ``parts``; ``None`` without a limit of ``minutes``.

    A stage with the part 0 has no limit.

    Raises:
        ValueError: unless the stage has a part, no part is negative, and one is positive.
    """
    if stage not in parts or min(parts.values()) < 0 or sum(parts.values()) == 0:
        raise ValueError(
            f"expected a part of each stage, 0 or more and not all 0, got {dict(parts)}; change stage_parts"
        )
    if minutes is None or parts[stage] == 0:
        return None
    return minutes * parts[stage] / sum(parts.values())


def random_slices(dataset: Dataset, settings: StageSettings) -> DataLoader:
    """Batches of random items of a dataset, with replacement, for an epoch."""
    count = settings.epoch_length * settings.batch_size
    return DataLoader(
        dataset,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        sampler=RandomSampler(dataset, replacement=True, num_samples=count),  # type: ignore[arg-type]
    )


def segmentation_stage(
    name: str,
    slices: DataLoader,
    network: nn.Module,
    learning_rate: float,
    max_epochs: int,
    settings: StageSettings,
) -> Stage:
    """A stage that trains a segmentation network on slices with labels.

    Args:
        name: of the stage.
        slices: batches of ``image (B, 1, H, W)`` in [0, 1] and ``label (B, 1, H, W)``, see [`random_slices`][].
        network: ``image`` -> scores ``(B, C, H, W)``; saved as ``<output_dir>/<name>/model.pt``.
        learning_rate: of AdamW.
        max_epochs: epochs, unless the minutes of the stage end before.
        settings: of all stages.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    minutes = stage_minutes(name, settings.minutes, settings.parts)
    budget = TrainingBudget({"network": optimizer}, minutes)
    folder = str(Path(settings.output_dir) / name)
    handlers = _handlers(
        folder,
        slices,
        budget,
        log=TensorBoardStatsHandler(log_dir=folder, output_transform=loss_of_output),
        saver=WeightsSaver(network, folder, interval=settings.save_interval),
        checkpoint={"network": network, "optimizer": optimizer, "budget": budget},
        settings=settings,
    )
    trainer = SupervisedTrainer(
        device=settings.device,
        max_epochs=max_epochs,
        train_data_loader=slices,
        network=network,
        optimizer=optimizer,
        loss_function=settings.loss,
        train_handlers=handlers,
        decollate=False,
        amp=settings.amp and settings.device.type == "cuda",
        amp_kwargs={"dtype": torch.bfloat16},
    )
    return Stage(name, trainer, budget, settings.batch_size, settings.output_dir)


def alignment_stage(
    name: str,
    slices: DataLoader,
    network: nn.Module,
    discriminator: ScoreDiscriminator,
    learning_rate: float,
    discriminator_learning_rate: float,
    max_epochs: int,
    start: float,
    weight: float,
    min_accuracy: float,
    settings: StageSettings,
) -> Stage:
    """A stage that adapts a segmentation network to real MR without labels.

    Args:
        name: of the stage.
        slices: batches of translated CT, its label, and real MR, see [`random_slices`][].
        network: trained on CT; saved as ``<output_dir>/segmentation.pt``.
        discriminator: of the network's scores.
        learning_rate: of the network's AdamW.
        discriminator_learning_rate: of the discriminator's AdamW.
        max_epochs: epochs, unless the minutes of the stage end before.
        start: see [`contourdiff_lab.baselines.feature_alignment.FeatureAlignment`][], as for the next two.
        weight: of the adversarial loss.
        min_accuracy: of the discriminator.
        settings: of all stages.
    """
    optimizers = {
        "network": torch.optim.AdamW(network.parameters(), lr=learning_rate),
        "discriminator": torch.optim.AdamW(
            discriminator.parameters(), lr=discriminator_learning_rate
        ),
    }
    budget = TrainingBudget(optimizers, stage_minutes(name, settings.minutes, settings.parts))
    alignment = FeatureAlignment(
        discriminator,
        optimizers["discriminator"],
        budget,
        start=start,
        weight=weight,
        min_accuracy=min_accuracy,
        amp=settings.amp,
    )
    checkpoint = {
        "network": network,
        "discriminator": discriminator,
        "budget": budget,
        "optimizer": optimizers["network"],
        "discriminator_optimizer": optimizers["discriminator"],
    }
    folder = str(Path(settings.output_dir) / name)
    handlers = _handlers(
        folder,
        slices,
        budget,
        log=TensorBoardStatsHandler(log_dir=folder, output_transform=dict),
        saver=WeightsSaver(
            network, settings.output_dir, interval=settings.save_interval, file="segmentation.pt"
        ),
        checkpoint=checkpoint,
        settings=settings,
    )
    trainer = SupervisedTrainer(
        device=settings.device,
        max_epochs=max_epochs,
        train_data_loader=slices,
        network=network,
        optimizer=optimizers["network"],
        loss_function=settings.loss,
        iteration_update=alignment,
        train_handlers=handlers,
        decollate=False,
    )
    return Stage(name, trainer, budget, settings.batch_size, settings.output_dir)


def _handlers(
    folder: str,
    slices: DataLoader,
    budget: TrainingBudget,
    log: TensorBoardStatsHandler,
    saver: WeightsSaver,
    checkpoint: Mapping[str, Any],
    settings: StageSettings,
) -> list[Any]:
    """Handlers of a stage, which goes on from the newest checkpoint in its folder."""
    newest = newest_checkpoint(folder)
    checkpoints = Checkpoints(
        checkpoint,
        folder,
        interval=settings.save_interval,
        resume_from=None if newest is None else str(newest),
        device=settings.device,
    )
    seeder = EpochSeeder(settings.seed, slices.dataset)
    return [seeder, budget, ProgressBar(persist=True), log, saver, checkpoints]


def run_stage(stage: Stage) -> None:
    """Run a stage, unless it is finished, and then write ``<output_dir>/<stage>/trained.json``.

    The record has seconds of wall clock, iterations, and images of each side.

    Raises:
        RuntimeError: if the training was stopped; the next stage requires its weights.
    """
    path = Path(stage.output_dir) / stage.name / RECORD
    if path.is_file():
        return
    stage.trainer.run()
    if stage.budget.share(stage.trainer) < 1:
        raise RuntimeError(
            f"expected the stage {stage.name} to reach its end, but it was stopped; run again to resume it"
        )
    record = counts(stage.trainer, stage.budget, stage.batch_size)
    write_text(path, json.dumps(record, indent=2) + "\n")


def record_stages(
    method: str,
    stages: Iterable[str],
    networks: Sequence[nn.Module],
    output_dir: str | Path,
    settings: Mapping[str, Any],
) -> None:
    """Write ``<output_dir>/trained.json`` from the records of all stages: sums, and the stages by name.

    Trained parameters are those of ``networks``; ``settings`` are recorded unchanged.
    """
    root = Path(output_dir)
    records = {}
    for stage in stages:
        records[stage] = json.loads((root / stage / RECORD).read_text(encoding="utf-8"))
    parameters = 0
    for network in networks:
        parameters += sum(parameter.numel() for parameter in network.parameters())
    record = {
        "method": method,
        "seconds": sum(record["seconds"] for record in records.values()),
        "iterations": sum(record["iterations"] for record in records.values()),
        "images": sum(record["images"] for record in records.values()),
        "parameters": parameters,
        "stages": records,
        "settings": settings,
    }
    write_text(root / RECORD, json.dumps(record, indent=2) + "\n")
