# SPDX-License-Identifier: Apache-2.0
"""Translate the cases of a folder in many processes or on many machines, with Dask."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser

from contourdiff import bundle as bundle_folder
from contourdiff.config_checks import plain_errors
from contourdiff.data.atomic import OWNER, remove_partial_files
from contourdiff.data.inputs import Pair, Source, is_url
from contourdiff.inference.evaluator import reason_of
from contourdiff.inference.progress import progress_bar
from contourdiff.inference.run import Contrasts, prepared_cases, run_inference, translate_contrasts
from contourdiff.inference.summary import Outcome
from contourdiff.logs import LIBRARIES

PACKAGE = __name__.partition(".")[0]
LOST_WORKER_TIMEOUT = "60s"
"""Time that a worker of this machine has to start again after its process died, before it is replaced."""
_worker = threading.local()
"""Components of the run that this thread of a worker works for: they are created once, with the network."""


class _Run(NamedTuple):
    """What the tasks of a run share."""

    name: str
    arguments: dict[str, Any]
    """Of [`contourdiff.bundle.translate`][]."""
    log_level: int


class _Records(QueueHandler):
    """Collect log records, made ready for another process."""

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.append(record)  # type: ignore[attr-defined]


def translate(
    dataset_dir: str | Path,
    output_dir: str | Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    **settings: Any,
) -> Path:
    """Translate every CT of a folder as [`contourdiff.bundle.translate`][] does, with the same results.

    They are equal to the bit if each worker has as many threads as the one process (``OMP_NUM_THREADS``).
    Folder, settings and weights are checked here; a case is checked where it is translated. A case whose worker died
    is given to another one; a case that failed is not. Workers see the same folders, and may come and go.

    Args:
        dataset_dir: see [`contourdiff.bundle.translate`][].
        output_dir: see there.
        workers: processes on this machine, which share its cores, and its GPUs in turn.
        scheduler: address of a Dask scheduler, ``tcp://host:8786``, instead.
        settings: other arguments of [`contourdiff.bundle.translate`][].

    Returns ``output_dir``. Errors as there; ``ImportError`` without Dask, ``OSError`` if no scheduler answers.
    """
    if (workers is None) == (scheduler is None) or (workers is not None and workers < 1):
        raise ValueError(
            f"expected workers, 1 or more, or a scheduler, got {workers}, {scheduler}; pass one of both"
        )
    source = dataset_dir if is_url(dataset_dir) else Path(dataset_dir).resolve()
    arguments = {"dataset_dir": source, "output_dir": Path(output_dir).resolve(), **settings}
    parser = bundle_folder.translation_parser(**arguments)
    with _connected(workers, scheduler) as client, plain_errors():
        run_inference(parser, partial(_translate_contrasts, client, arguments))
    return Path(output_dir)


@contextmanager
def _connected(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """Client of a scheduler, or of one with its workers on this machine."""
    try:
        import dask
        from distributed import Client, LocalCluster
        from tornado.ioloop import PeriodicCallback
    except ImportError as error:
        raise ImportError(
            "several workers require Dask: pip install 'contourdiff[scale]'"
        ) from error
    if logging.getLogger(PACKAGE).getEffectiveLevel() > logging.DEBUG:
        logging.getLogger("distributed").setLevel(logging.ERROR)  # Dask sets it as it is imported
    if workers is None:
        with Client(scheduler) as client:
            yield client
        return
    config = {
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": max(
            1, torch.get_num_threads() // workers
        ),
        "distributed.worker.profile.enabled": False,  # which looks at each worker's stack 100 times a second
        "distributed.admin.tick.interval": "1s",  # 50 times a second otherwise, in each worker and for each one here
        "distributed.deploy.lost-worker-timeout": LOST_WORKER_TIMEOUT,  # then Dask gives the worker up
        "distributed.scheduler.worker-saturation": 1.0,  # no case waits at a worker, to be blamed if that dies
    }
    options = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": "127.0.0.1:0"}
    with (
        dask.config.set(config),
        LocalCluster(n_workers=workers, silence_logs=logging.CRITICAL, **options) as cluster,
        Client(cluster) as client,
    ):
        # opens workers anew that Dask gave up, because they started slowly or died as they started
        missing = PeriodicCallback(partial(cluster.scale, workers), 1000)
        cluster.loop.add_callback(missing.start)
        try:
            yield client
        finally:
            cluster.loop.add_callback(missing.stop)


def _translate_contrasts(
    client: Any, arguments: dict[str, Any], parser: ConfigParser, contrasts: Contrasts
) -> dict[str, Outcome]:
    """Hand out the cases, a task for each and each contrast, with one line of progress; outcomes by suffix."""
    cases, pairs = prepared_cases(parser)
    kept = {
        suffix: [case for case in pairs if cases.has_record(case, suffix)] for suffix in contrasts
    }
    outcomes = {suffix: Outcome({}, names, {}) for suffix, names in kept.items()}
    level = logging.getLogger(PACKAGE).getEffectiveLevel()
    total = sum(len(pairs) - len(names) for names in kept.values())
    with progress_bar(total, "case", bool(parser.get("progress")) and total > 0) as bar:
        for suffix, contrast in contrasts.items():
            settings = {"case_suffix": suffix} | (
                {} if contrast is None else {"contrast": contrast}
            )
            run = _Run(
                f"run-{uuid.uuid4().hex[:8]}", {**arguments, **settings, "progress": False}, level
            )
            todo = {case: pair for case, pair in pairs.items() if case not in kept[suffix]}
            try:
                for outcome in _finished(client, run, todo):
                    outcomes[suffix].add(outcome)
                    bar.update()
            finally:
                remove_partial_files(cases.output_dir, run.name)
    return outcomes


def _finished(client: Any, run: _Run, todo: Mapping[str, Pair]) -> Iterator[Outcome]:
    """What became of each case, in the order in which they finish."""
    from distributed import as_completed

    entries = [{"image": image, "label": label} for image, label in todo.values()]
    futures = client.map(
        _translate_case, entries, run=run, pure=False, key=[f"{run.name}-{case}" for case in todo]
    )
    named = dict(zip((future.key for future in futures), todo, strict=True))
    for future, result in as_completed(futures, with_results=True, raise_errors=False):
        if future.status == "finished":
            yield _logged(*result)
        else:
            yield Outcome({}, [], {named[future.key]: reason_of(result[1])})
        future.release()


def _logged(outcome: Outcome, records: list[logging.LogRecord]) -> Outcome:
    """Hand what a worker logged to the loggers here."""
    for record in records:
        logging.getLogger(record.name).handle(record)
    return outcome


def gpu_of_worker() -> dict[str, torch.device]:
    """``device`` of a worker: workers that are numbered, as those of one machine are, share several GPUs in turn."""
    from distributed import get_worker

    gpus, number = torch.cuda.device_count(), get_worker().name
    return (
        {"device": torch.device("cuda", number % gpus)}
        if gpus > 1 and isinstance(number, int)
        else {}
    )


def _translate_case(
    entry: dict[str, Source | None], run: _Run
) -> tuple[Outcome, list[logging.LogRecord]]:
    """Translate one case in a worker, whose components are kept for the next one; log records are returned."""
    records: list[logging.LogRecord] = []
    handler, logger = _Records(records), logging.getLogger(PACKAGE)  # type: ignore[arg-type]
    logger.addHandler(handler)
    logger.setLevel(run.log_level)
    logging.captureWarnings(True)
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)
    owner = OWNER.set(run.name)
    try:
        if getattr(_worker, "run", None) != run.name:
            arguments = gpu_of_worker() | run.arguments
            _worker.parser, _worker.run = bundle_folder.translation_parser(**arguments), run.name
        _worker.parser.get_parsed_content("cases").datalist = [entry]
        with plain_errors():
            (outcome,) = translate_contrasts(
                _worker.parser, {run.arguments["case_suffix"]: None}
            ).values()
        return outcome, records
    finally:
        OWNER.reset(owner)
        logger.removeHandler(handler)
