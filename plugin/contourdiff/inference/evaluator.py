# SPDX-License-Identifier: Apache-2.0
"""Whole cases through MONAI's evaluator: read, translated, handed to postprocessing and handlers."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from traceback import format_exception
from typing import Any, NamedTuple, cast

from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.transforms import Transform

from contourdiff.config_checks import root_cause
from contourdiff.data.cases import TranslationCases, case_of
from contourdiff.inference.acceleration import release_heap
from contourdiff.inference.inferer import VolumeInferer
from contourdiff.inference.volume_state import VolumeResult

logger = logging.getLogger(__name__)

Item = Mapping[str, Any]


class UnreadCase(NamedTuple):
    """Stands for an item that could not be read or transformed, with the reason; it can be pickled."""

    case: str
    message: str


class CaseDataset(Dataset):
    """Cases to translate, whose ``items`` may be filled later; one that cannot be read is an [`UnreadCase`][]."""

    def __init__(self, cases: TranslationCases, transform: Transform) -> None:
        super().__init__(cases.items, transform)

    def __getitem__(self, index: Any) -> Any:
        """Case ``index``, transformed."""
        try:
            return super().__getitem__(index)
        except Exception as error:
            case = case_of(self.data[index]["image"])
            logger.error("%s: reading failed, %s", case, reason_of(error))
            logger.debug("%s", "".join(format_exception(error)))
            return UnreadCase(case, reason_of(error))


class CaseEvaluator(SupervisedEvaluator):
    """MONAI's ``SupervisedEvaluator`` for batches that are lists of whole cases, which may differ in size.

    The cases of a batch are translated together by ``inferer.translate``, or one by one if that fails. Postprocessing
    and handlers of ``FORWARD_COMPLETED`` and ``MODEL_COMPLETED`` then see one case at a time: ``state.batch = [item]``
    and ``state.output = [{**item, "pred": gray levels, "result": VolumeResult}]``. A case that fails is recorded, and
    the others go on. Handlers and metrics of ``ITERATION_COMPLETED`` see all completed cases of the batch as such
    lists; without a completed case they are not called. Everything runs in the main thread; workers of the data loader
    read ahead. Arguments as in ``SupervisedEvaluator``; the loader must use ``monai.data.utils.no_collation``.

    Attributes:
        completed: cases that were translated and whose handlers succeeded, with the seconds since the one before.
        failures: why the other cases could not be translated.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "decollate": False})
        self.class_label: int | None = None
        self.case_suffix = ""
        self.completed: dict[str, float] = {}
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
        self, engine: SupervisedEvaluator, batchdata: Sequence[Item | UnreadCase]
    ) -> list[Item]:
        """Translate a batch and complete its cases one after the other."""
        for unread in (item for item in batchdata if isinstance(item, UnreadCase)):
            self.failures[unread.case] = unread.message
        items = [item for item in batchdata if not isinstance(item, UnreadCase)]
        results = self._translate(items)
        pairs = [self._complete(items.pop(0), results.pop(0)) for _ in range(len(items))]
        done = [pair for pair in pairs if pair is not None]
        self.state.batch = [item for item, _ in done]
        return [output for _, output in done]

    def _translate(self, items: Sequence[Item]) -> list[VolumeResult | None]:
        """Results of all items together, or one by one if they fail together; ``None`` for an item that fails."""
        if not items:
            return []
        try:
            inputs = [
                item["image"].to(self.state.device, non_blocking=self.non_blocking)
                for item in items
            ]
            with self.mode(self.network):
                labels = [self.class_label] * len(items)
                names = [f"{_case_of(item)}{self.case_suffix}" for item in items]
                results = cast(VolumeInferer, self.inferer).translate(
                    inputs, self.network, labels, names
                )
            return [result._replace(gray_levels=result.gray_levels.cpu()) for result in results]
        except Exception as error:
            if len(items) == 1:
                self._fail(_case_of(items[0]), error)
                return [None]
            logger.warning("%s failed together: %s", ", ".join(map(_case_of, items)), error)
        finally:
            release_heap()
        return [result for item in items for result in self._translate([item])]

    def _complete(self, item: Item, result: VolumeResult | None) -> tuple[Item, Item] | None:
        """Postprocessing and handlers of one case: its batch and output on success."""
        if result is None:
            return None
        self.state.batch = [item]
        self.state.output = [{**item, "pred": result.gray_levels, "result": result}]
        try:
            self.fire_event(IterationEvents.FORWARD_COMPLETED)
            self.fire_event(IterationEvents.MODEL_COMPLETED)
            self.completed[_case_of(item)] = time.perf_counter() - self._since
            return self.state.batch[0], self.state.output[0]
        except Exception as error:
            self._fail(_case_of(item), error)
            return None
        finally:
            self._since = time.perf_counter()
            _release(self)

    def _fail(self, case: str, error: Exception) -> None:
        self.failures[case] = reason_of(error)
        logger.error("%s: translation failed, %s", case, self.failures[case])
        logger.debug("%s", "".join(format_exception(error)))  # text keeps no volume

    def _fire_event(self, event_name: Any, *args: Any, **kwargs: Any) -> None:
        if event_name is not Events.ITERATION_COMPLETED or self.state.output:
            super()._fire_event(event_name, *args, **kwargs)


def _case_of(item: Item) -> str:
    return case_of(item["image"].meta["filename_or_obj"])


def reason_of(error: BaseException) -> str:
    """What went wrong, for a log: one line of the error's [`contourdiff.config_checks.root_cause`][]."""
    cause = root_cause(error)
    if isinstance(cause, MemoryError):
        return "expected enough memory for the case, got a MemoryError; crop the volume, or run less beside it"
    if "cannot find a suitable" in str(
        cause
    ):  # MONAI's SaveImage and LoadImage quote the traceback of the error
        return str(cause).strip().splitlines()[-1].strip()
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"


def _release(engine: Engine) -> None:
    """Release the volumes of the last case."""
    engine.state.batch = engine.state.output = None
    release_heap()
