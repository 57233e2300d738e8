# SPDX-License-Identifier: Apache-2.0
"""Whole cases through MONAI's evaluator: read, translated, handed to postprocessing and handlers."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import Lock
from traceback import format_exception
from typing import Any, NamedTuple, cast

from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.transforms import Transform
from torch.utils.data import get_worker_info

from contourdiff.config_checks import root_cause
from contourdiff.data.translation_cases import TranslationCases
from contourdiff.data.volumes import release_voxels
from contourdiff.inference.acceleration import release_heap
from contourdiff.inference.inferer import VolumeInferer
from contourdiff.inference.summary import Row, summary_row
from contourdiff.inference.volume_state import VolumeResult

logger = logging.getLogger(__name__)


class UnreadCase(NamedTuple):
    """Stands for an item that could not be read or transformed, with the reason; it can be pickled."""

    name: str
    message: str


class CaseDataset(Dataset):
    """Translations to compute, whose ``items`` may be filled later; one that cannot be read is an [`UnreadCase`][].

    The metadata of an item's ``image`` have its ``name``, so that its files can be named after it.
    """

    def __init__(self, cases: TranslationCases, transform: Transform) -> None:
        super().__init__(cases.items, transform)

    def __getitem__(self, index: Any) -> Any:
        """Item ``index``, transformed."""
        self._release_before(index)
        name = self.data[index]["name"]
        try:
            item = super().__getitem__(index)
        except Exception as error:
            logger.error("%s: reading failed, %s", name, reason_of(error))
            logger.debug("%s", "".join(format_exception(error)))
            return UnreadCase(name, reason_of(error))
        if isinstance(item["image"], MetaTensor):
            item["image"].meta["name"] = name
        return item

    def _release_before(self, index: int) -> None:
        """Release the voxels of the cases before, which are done."""
        case = self.data[index]["case"]
        for item in self.data[:index]:
            if item["case"] != case:
                release_voxels([item["image"], item["label"]])


class CaseLoader(DataLoader):
    """Batches of one item of a [`CaseDataset`][], which ``num_workers`` processes read ahead.

    An item comes through a pipe: shared memory (``/dev/shm``) is 64 MB in a container, less than a volume. If a process
    dies, or none can be started, the other cases are read here, one at a time.
    """

    def __init__(self, dataset: CaseDataset, num_workers: int = 0) -> None:
        super().__init__(
            dataset,
            num_workers=num_workers,
            batch_size=1,
            prefetch_factor=1 if num_workers else None,
            collate_fn=_packed,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches in the order of the dataset."""
        number = 0
        try:
            if self.num_workers:
                Lock()  # a file in /dev/shm; torch fails twice where none can be made
            batches = super().__iter__()
            for _ in range(len(self)):
                yield _unpacked(next(batches))  # and no reference to the volume stays here
                number += 1
        except (RuntimeError, OSError) as error:
            if not self.num_workers:
                raise
            logger.warning(
                "expected num_workers=%d processes that read ahead, got: %s; the other cases are read without them. "
                "Give the processes more memory, or pass num_workers=0",
                self.num_workers,
                reason_of(error),
            )
            for index in range(number, len(self)):
                yield [self.dataset[index]]


def _packed(batch: list[Any]) -> list[Any]:
    """An item as bytes, if it is to leave the process that read it."""
    if get_worker_info() is None:
        return batch
    return [pickle.dumps(batch[0], protocol=pickle.HIGHEST_PROTOCOL)]


def _unpacked(batch: list[Any]) -> list[Any]:
    (item,) = batch
    if isinstance(item, bytes):
        return [pickle.loads(item)]
    return batch


class CaseEvaluator(SupervisedEvaluator):
    """MONAI's ``SupervisedEvaluator`` for whole cases, one after the other.

    A batch is a list of one item of a [`CaseDataset`][]. Postprocessing and handlers of ``FORWARD_COMPLETED`` and
    ``MODEL_COMPLETED`` see it as ``state.batch = [item]`` and
    ``state.output = [{**item, "pred": gray levels, "result": VolumeResult}]``. A case that fails is recorded, and the
    others go on; handlers and metrics of ``ITERATION_COMPLETED`` are not called for it. Everything runs in the main
    thread. Arguments as in ``SupervisedEvaluator``; the loader is a [`CaseLoader`][], or has batch size 1 and uses
    ``monai.data.utils.no_collation``.

    Attributes:
        completed: lines of the summary of the translations whose handlers succeeded, by name, see
            [`contourdiff.inference.summary.summary_row`][]; a handler may leave the ``record`` in ``state.output[0]``.
        failures: why the others could not be computed, by name.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs["decollate"] = False
        super().__init__(**kwargs)
        self.completed: dict[str, Row] = {}
        self.failures: dict[str, str] = {}
        self.add_event_handler(Events.GET_BATCH_STARTED, _release)

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]
        """Run over all cases; their number may have changed since the evaluator was built."""
        self.completed.clear()
        self.failures.clear()
        self._since = time.perf_counter()
        self.state.epoch_length = len(self.data_loader)  # type: ignore[arg-type]
        super().run(global_epoch)

    def _iteration(  # type: ignore[override]
        self, engine: SupervisedEvaluator, batchdata: Sequence[Mapping[str, Any] | UnreadCase]
    ) -> list[Mapping[str, Any]]:
        """Translate a case and hand it to postprocessing and handlers; empty if it failed."""
        (item,) = batchdata
        if isinstance(item, UnreadCase):
            self.failures[item.name] = item.message
            return []
        name = item["name"]
        try:
            self._translate(item)
            return self.state.output  # type: ignore[return-value]
        except Exception as error:
            self.failures[name] = reason_of(error)
            logger.error("%s: translation failed, %s", name, self.failures[name])
            logger.debug("%s", "".join(format_exception(error)))  # text keeps no volume
            return []
        finally:
            self._since = time.perf_counter()
            release_heap()

    def _translate(self, item: Mapping[str, Any]) -> None:
        result = self._result_of(item)
        self.state.batch = [item]
        self.state.output = [{**item, "pred": result.gray_levels, "result": result}]
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        seconds = time.perf_counter() - self._since
        record = self.state.output[0].get("record")
        self.completed[item["name"]] = summary_row(
            item["name"], "translated", record, seconds=seconds
        )

    def _result_of(self, item: Mapping[str, Any]) -> VolumeResult:
        image = item["image"].to(self.state.device, non_blocking=self.non_blocking)
        try:
            with self.mode(self.network):
                (result,) = cast(VolumeInferer, self.inferer).translate(
                    [image],
                    self.network,
                    class_labels=[item["contrast"]],
                    names=[item["name"]],
                )
        finally:
            release_heap()
        return result._replace(gray_levels=result.gray_levels.cpu())

    def _fire_event(self, event_name: Any, *args: Any, **kwargs: Any) -> None:
        if event_name is not Events.ITERATION_COMPLETED or self.state.output:
            super()._fire_event(event_name, *args, **kwargs)


def reason_of(error: BaseException) -> str:
    """What went wrong, for a log: one line of the error's [`contourdiff.config_checks.root_cause`][]."""
    cause = root_cause(error)
    if isinstance(cause, MemoryError):
        return "expected enough memory for the case, got a MemoryError; crop the volume, or run less beside it"
    text = str(cause).strip()
    if "cannot find a suitable" in text:  # MONAI's SaveImage and LoadImage quote a traceback
        return text.splitlines()[-1].strip()
    return f"{type(cause).__name__}: {' '.join(text.split())}"


def _release(engine: Engine) -> None:
    """Release the volumes of the last case."""
    engine.state.batch = None
    engine.state.output = None
    release_heap()
