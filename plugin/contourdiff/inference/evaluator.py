# SPDX-License-Identifier: Apache-2.0
"""Whole cases through a stock evaluator: several side by side, the next one while the last is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents

from contourdiff.data.cases import TranslationCases, case_of
from contourdiff.inference.allocator import release_freed_memory, stop_keeping_freed_memory

logger = logging.getLogger(__name__)

Item = Mapping[str, Any]


class UnreadCase(NamedTuple):
    """What stands in the place of an item whose file could not be made ready."""

    case: str
    error: Exception


class CaseDataset(Dataset):
    """MONAI's ``Dataset`` of cases, ``[{"image": path}, ...]``, with an :class:`UnreadCase` where it would fail."""

    def __getitem__(self, index: Any) -> Any:
        """Case ``index``, transformed."""
        try:
            return super().__getitem__(index)
        except Exception as error:
            return UnreadCase(case_of(self.data[index]["image"]), error)


class Translated(NamedTuple):
    """An item with its translation, or with what came between."""

    case: str
    item: Item
    translation: torch.Tensor | None
    error: Exception | None = None


Promise = Future[list[Translated]]


class CaseIteration:
    """``iteration_update`` of a stock ``SupervisedEvaluator`` whose batches are lists of whole cases.

    All cases of a batch are handed to the inferer together. The evaluator's postprocessing and handlers then see one
    case at a time, ``state.batch = [item]`` and ``state.output = [{"pred": translation}]``, on the CPU. A case that
    fails is noted in ``cases.failures``, and the others go on: those beside it are translated again without it.

    With ``overlap_io`` the evaluator itself works in a thread of its own: it reads the next case and writes the last
    one while the network works in the thread that called :meth:`run`. It never does two things at a time, so transforms
    that are not safe to be shared by threads are safe here. Results are the same; two cases lie in memory, not one.

    Args:
        cases: where failures are noted.
        overlap_io: read and write while the network works. Pays where that is another device than the CPU.
    """

    def __init__(self, cases: TranslationCases, overlap_io: bool = False) -> None:
        self.cases = cases
        self.overlap_io = overlap_io
        self._ahead: Promise | None = None
        self._work: SimpleQueue[tuple[Promise, Callable[[], list[Translated]]] | None] = SimpleQueue()

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator, beside being its ``iteration_update``."""
        engine.add_event_handler(Events.GET_BATCH_STARTED, _free)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete_last)

    def run(self, evaluator: SupervisedEvaluator) -> None:
        """Run the evaluator over all cases; with ``overlap_io``, the network's work is done in the calling thread."""
        if not self.overlap_io:
            evaluator.run()
            return

        def evaluate() -> None:
            try:
                evaluator.run()
            finally:
                self._work.put(None)

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="evaluator") as thread:
            evaluation = thread.submit(evaluate)
            self._serve()
            evaluation.result()

    def _serve(self) -> None:
        """Translate what the evaluator asks for until it ends; a stop by the user ends it, too."""
        promise: Promise | None = None
        try:
            for promise, translate in iter(self._work.get, None):
                promise.set_result(translate())
                del translate  # and with it the case
        except BaseException as stop:
            self._refuse(promise, stop)
            raise

    def _refuse(self, promise: Promise | None, reason: BaseException) -> None:
        """Let nobody wait for ever: neither for this translation nor for what is asked for until the evaluator ends."""
        if promise is not None and not promise.done():
            promise.set_exception(reason)
        for asked, _ in iter(self._work.get, None):
            asked.set_exception(reason)

    def __call__(self, engine: SupervisedEvaluator, batch: Sequence[Item | UnreadCase]) -> list[Any]:
        """Translate a batch and complete it; with ``overlap_io``, complete the one before meanwhile."""
        items = [item for item in batch if not isinstance(item, UnreadCase)]
        for unread in (item for item in batch if isinstance(item, UnreadCase)):
            self._note(unread.case, unread.error)
        if not self.overlap_io:
            self._complete(engine, _translate(engine, items))
        else:
            before, self._ahead = self._ahead, Future()
            self._work.put((self._ahead, partial(_translate, engine, items)))
            if before is not None:
                self._complete(engine, before.result())
        return []

    def _complete_last(self, engine: SupervisedEvaluator) -> None:
        before, self._ahead = self._ahead, None
        if before is not None:
            self._complete(engine, before.result())

    def _complete(self, engine: SupervisedEvaluator, translated: list[Translated]) -> None:
        """Postprocessing and handlers, case by case."""
        while translated:
            case, item, translation, error = translated.pop(0)
            if error is not None:
                self._note(case, error)
                continue
            engine.state.batch, engine.state.output = [item], [{"pred": translation}]  # type: ignore[assignment]
            del item, translation
            try:
                engine.fire_event(IterationEvents.FORWARD_COMPLETED)
                engine.fire_event(IterationEvents.MODEL_COMPLETED)
            except Exception as failure:
                self._note(case, failure)
            _free(engine)
            release_freed_memory()

    def _note(self, case: str, error: Exception) -> None:
        """Tell of the fault itself, which MONAI wraps into the name of the transform that it happened in."""
        logger.error("%s: translation failed", case, exc_info=error)
        fault: BaseException = error
        while fault.__cause__ is not None:
            fault = fault.__cause__
        self.cases.failures[case] = f"{type(fault).__name__}: {fault}"


def _translate(engine: SupervisedEvaluator, items: Sequence[Item]) -> list[Translated]:
    """All items together, or one by one if they fail together."""
    if not items:
        return []
    names = [case_of(item["image"].meta["filename_or_obj"]) for item in items]
    try:
        inputs: Any = [item["image"].to(engine.state.device, non_blocking=engine.non_blocking) for item in items]
        with engine.mode(engine.network):
            outputs = engine.inferer(inputs, engine.network)
        return [Translated(*each) for each in zip(names, items, (output.cpu() for output in outputs), strict=True)]
    except Exception as error:
        if len(items) == 1:
            return [Translated(names[0], items[0], None, error)]
        logger.warning("%s failed together, translating them one by one: %s", ", ".join(names), error)
        return [each for item in items for each in _translate(engine, [item])]
    finally:
        stop_keeping_freed_memory()
        release_freed_memory()


def _free(engine: Engine) -> None:
    """Let go of what the last case left, so that the next one finds its room empty."""
    engine.state.batch = engine.state.output = None
