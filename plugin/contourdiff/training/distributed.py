# SPDX-License-Identifier: Apache-2.0
"""Training on several devices, one process each: equal to a training in one process, for the same batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from monai.data.utils import set_rnd
from monai.engines.utils import IterationEvents
from numpy.random import SeedSequence
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, Dataset, Sampler

SeededPosition = tuple[int, int]
"""Position of an item in its dataset, and the seed of the item's random transforms."""


def local_device() -> torch.device:
    """GPU of this process among those of its machine, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = os.environ.get("LOCAL_RANK", 0)
    return torch.device(f"cuda:{local_rank}")


def join_processes(device: torch.device | str) -> None:
    """Join the other processes that torchrun started: by NCCL for GPUs, by Gloo for CPUs.

    Processes other than the first log warnings alone. Raises ``ValueError`` without torchrun, or if ``device`` is a GPU
    that is absent or another process's.
    """
    device = torch.device(device)
    if "LOCAL_RANK" not in os.environ:
        raise ValueError(
            "expected one process for each GPU, started by torchrun, got a single process without it; put "
            "'torchrun --standalone --nproc_per_node N -m' before contourdiff or monai.bundle, or leave out the overlay"
        )
    local_rank = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        if not device.index == local_rank < gpus:
            raise ValueError(
                f"expected device cuda:{local_rank} for process {local_rank}, got {device} of {gpus} GPUs; "
                "leave out device, and start at most one process for each GPU"
            )
    idist.initialize("nccl" if device.type == "cuda" else "gloo")
    if idist.get_rank() > 0:
        logging.disable(logging.INFO)


def leave_processes(network: DistributedDataParallel) -> None:
    """Close the group of processes, and end its threads; ``network`` cannot be trained after that.

    What averages the gradients of ``network`` holds the group, too. All holders are dropped, because a thread of Gloo
    that outlives the interpreter aborts the process.
    """
    idist.finalize()
    del network.reducer, network.logger, network.process_group


def rows_of_process(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """This process's ``count`` rows of what ``draw`` draws for the items of all processes; see [`RankBatches`][].

    Every process draws for the whole batch, so an item's draws do not depend on the number of processes, provided that
    the random state is the same in all. ``draw`` takes a number of rows ``N`` and returns ``(N, ...)``.
    """
    rows = draw(count * idist.get_world_size())
    return rows[_share_of_process()]


def _share_of_process() -> slice:
    return slice(idist.get_rank(), None, idist.get_world_size())


@dataclass(eq=False)
class RankBatches(Sampler):
    """This process's share of the batches of ``sampler``: every ``N``-th item of a batch, for ``N`` processes.

    All processes together have the ``batch_size`` items of a batch, the same for every ``N``. Each item comes with a
    seed of its own, drawn from torch's generator, for [`SeededItems`][]. The last batch is left out unless it is full.
    Raises ``ValueError`` if no batch is full or ``batch_size`` is no multiple of ``N``.
    """

    sampler: Sampler[int]
    batch_size: int

    def __post_init__(self) -> None:
        self.batches = BatchSampler(self.sampler, self.batch_size, drop_last=True)
        processes = idist.get_world_size()
        if self.batch_size % processes:
            raise ValueError(
                "batch_size is that of all processes together: expected a multiple of their number, "
                f"{processes}, got {self.batch_size}"
            )
        if not len(self.batches):
            items = len(self.sampler) if isinstance(self.sampler, Sized) else 0
            raise ValueError(
                f"expected batch_size ({self.batch_size}) slices or more, got {items}; reduce batch_size"
            )

    def __len__(self) -> int:
        """Return the number of batches, the same in every process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[SeededPosition]]:
        """Draw the batches, and a seed for each item of all processes."""
        number = torch.empty((), dtype=torch.int64).random_()
        entropy = int(number.item())
        for position, batch in enumerate(self.batches):
            sequence = SeedSequence([entropy, position])
            seeds = sequence.generate_state(len(batch)).tolist()
            items = list(zip(batch, seeds, strict=True))
            yield items[_share_of_process()]


@dataclass(eq=False)
class SeededItems(Dataset):
    """Items of ``dataset`` whose random transforms are seeded for each: independent of processes and workers."""

    dataset: Any

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.dataset)

    def __getitem__(self, seeded_position: SeededPosition) -> Any:
        """Item at a position, transformed with its seed."""
        position, seed = seeded_position
        set_rnd(self.dataset, seed=seed)
        return self.dataset[position]


@dataclass(eq=False)
class LossAverager:
    """Report the mean of the processes' losses, that of the whole batch, instead of a process's own."""

    def attach(self, engine: Engine) -> None:
        """Attach to a ``SupervisedTrainer``."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Replace the loss in the trainer's output."""
        output = engine.state.output
        loss = output["loss"].detach().clone()
        total: Any = idist.all_reduce(loss)
        output["loss"] = total / idist.get_world_size()
