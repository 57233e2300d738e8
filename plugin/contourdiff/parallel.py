# SPDX-License-Identifier: Apache-2.0
"""Translate the cases of a folder in many processes or on many machines, with Dask."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from logging.handlers import QueueHandler
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser

from contourdiff.bundle import inference_parser
from contourdiff.config_checks import plain_errors
from contourdiff.data.atomic import OWNER, remove_partial_files
from contourdiff.data.inputs import Pair, Source, is_url
from contourdiff.data.nifti_names import printable
from contourdiff.extras import import_extra
from contourdiff.inference.evaluator import reason_of
from contourdiff.inference.progress import progress_bar
from contourdiff.inference.run import prepared_cases, run_inference, translate_cases
from contourdiff.inference.summary import Row, failed_rows, kept_rows
from contourdiff.limits import SettingError
from contourdiff.logs import LIBRARIES, silence_itk

PACKAGE = __name__.partition(".")[0]
LOST_WORKER_TIMEOUT = "60s"
"""Time that a worker of this machine has to start again after its process died, before it is replaced."""
LONGEST_START_S = 30.0
"""Time that a worker has to start before it is ended."""
NO_LEAKS = "ignore:resource_tracker:UserWarning"
"""Python's tracker takes the semaphores of a worker that is ended for forgotten ones, and removes them with a line."""
_worker = threading.local()
"""Components of the run that this thread of a worker works for: they are created once, with the network."""


class _Run(NamedTuple):
    """What the tasks of a run share."""

    name: str
    arguments: dict[str, Any]
    """Of [`contourdiff.bundle.inference_parser`][]."""
    log_level: int


class _Records(QueueHandler):
    """Collect log records, made ready for another process."""

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.append(record)  # type: ignore[attr-defined]


def run_inference_config(
    dataset_dir: str | Path,
    output_dir: str | Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    **settings: Any,
) -> Path:
    """Translate every CT of a folder as [`contourdiff.bundle.run_inference_config`][] does, with the same results.

    They are equal to the bit if each worker has as many threads as the one process (``OMP_NUM_THREADS``).
    Folder, settings and weights are checked here; a case is checked where it is translated. A case whose worker died
    is given to another one; a case that failed is not. Workers see the same folders, and may come and go.

    Args:
        dataset_dir: see [`contourdiff.bundle.run_inference_config`][].
        output_dir: see there.
        workers: processes on this machine, which share its cores, and its GPUs in turn.
        scheduler: address of a Dask scheduler, ``tcp://host:8786``, instead.
        settings: other arguments of [`contourdiff.bundle.run_inference_config`][].

    Returns:
        ``output_dir``.

    Raises:
        ImportError: without Dask.
        OSError: if no scheduler answers; others as there.
        ValueError: for neither or both of ``workers`` and ``scheduler``; others as there.
    """
    if (workers is None) == (scheduler is None) or (workers is not None and workers < 1):
        raise SettingError(
            "expected workers, 1 or more, or a scheduler, "
            f"got {workers}, {scheduler}; pass either workers or scheduler"
        )
    source = dataset_dir if is_url(dataset_dir) else Path(dataset_dir).resolve()
    arguments = {**settings, "dataset_dir": source, "output_dir": Path(output_dir).resolve()}
    parser = inference_parser(**arguments)
    with _connected(workers, scheduler) as client, plain_errors():
        run_inference(parser, partial(_share_cases, client, arguments))
    return Path(output_dir)


@contextmanager
def _connected(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """Client of a scheduler, or of one with its workers on this machine."""
    distributed = import_extra("distributed", "several workers require Dask", "scale")
    if logging.getLogger(PACKAGE).getEffectiveLevel() > logging.DEBUG:
        logging.getLogger("distributed").setLevel(logging.ERROR)  # Dask sets it as it is imported
    if workers is None:
        with distributed.Client(scheduler) as client:
            yield client
    else:
        with _cluster(workers) as cluster, distributed.Client(cluster) as client:
            yield client


@contextmanager
def _cluster(workers: int) -> Iterator[Any]:
    """Workers on this machine; those that Dask gives up are replaced."""
    import dask
    from distributed import LocalCluster
    from tornado.ioloop import PeriodicCallback

    threads = max(1, torch.get_num_threads() // workers)
    config = {
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": threads,
        "distributed.worker.profile.enabled": False,  # which looks at each worker's stack 100 times a second
        "distributed.admin.tick.interval": "1s",  # 50 times a second otherwise, in each worker and for each one here
        "distributed.deploy.lost-worker-timeout": LOST_WORKER_TIMEOUT,  # then Dask gives the worker up
        "distributed.scheduler.worker-saturation": 1.0,  # no case waits at a worker, to be blamed if that dies
    }
    options: dict[str, Any] = {
        "n_workers": 0,
        "threads_per_worker": 1,
        "memory_limit": 0,
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": logging.CRITICAL,
    }
    with dask.config.set(config):
        with _interrupts_blocked():  # in its threads, so also in the workers that these start
            local_cluster = LocalCluster(**options)
        with local_cluster as cluster:
            cluster.scale(workers)
            # opens workers anew that Dask gave up, because they started slowly or died as they started
            replace_missing = PeriodicCallback(partial(cluster.scale, workers), 1000)
            cluster.loop.add_callback(replace_missing.start)
            try:
                yield cluster
            finally:
                cluster.loop.add_callback(replace_missing.stop)
                _wait_for_starts(cluster)


def _wait_for_starts(cluster: Any) -> None:
    """Wait until no worker is starting: Dask leaves the process of such a one behind, which then prints tracebacks."""
    deadline = time.monotonic() + LONGEST_START_S
    while time.monotonic() < deadline:
        states = [worker.status.name for worker in list(cluster._created)]
        if not {"init", "created", "starting"} & set(states):
            return
        time.sleep(0.1)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C from this thread for a moment, and from all threads and processes that start in it for ever.

    A terminal sends it to the workers, too. They would print tracebacks, and are ended by this process anyway.
    """
    sys.warnoptions.append(NO_LEAKS)  # the tracker takes the options of this process
    try:
        resource_tracker.ensure_running()  # the thread that starts it would unblock Ctrl-C for itself
    finally:
        sys.warnoptions.remove(NO_LEAKS)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _share_cases(client: Any, arguments: dict[str, Any], parser: ConfigParser) -> list[Row]:
    """Hand out the cases, a task for each with all its contrasts, with one line of progress; lines of the summary."""
    cases, pairs = prepared_cases(parser)
    kept: list[str] = []
    tasks: dict[str, Pair] = {}
    names: dict[str, list[str]] = {}
    for case, (image, label) in pairs.items():
        names[case] = []
        for name in cases.names(case):
            is_kept = cases.is_kept(name, label)
            group = kept if is_kept else names[case]
            group.append(name)
        if names[case]:
            tasks[case] = (image, label)
    total = sum(map(len, names.values()))
    level = logging.getLogger(PACKAGE).getEffectiveLevel()
    run = _Run(f"run-{uuid.uuid4().hex[:8]}", {**arguments, "progress": False}, level)
    rows = kept_rows(kept, cases.output_dir)
    with progress_bar(total, "case", bool(parser.get("progress")) and total > 0) as bar:
        try:
            for case, case_rows in _finished(client, run, tasks, names):
                rows += [row for row in case_rows if row["case"] not in kept]
                bar.update(len(names[case]))
        finally:
            remove_partial_files(cases.output_dir, run.name)
    return rows


def _finished(
    client: Any, run: _Run, tasks: Mapping[str, Pair], names: Mapping[str, list[str]]
) -> Iterator[tuple[str, list[Row]]]:
    """Each case and what became of its translations, in the order in which they finish."""
    from distributed import as_completed

    entries = [{"image": image, "label": label} for image, label in tasks.values()]
    keys = [f"{run.name}-{printable(case)}" for case in tasks]
    futures = client.map(_translate_case, entries, run=run, pure=False, key=keys)
    case_of_key = {future.key: case for future, case in zip(futures, tasks, strict=True)}
    for future, result in as_completed(futures, with_results=True, raise_errors=False):
        case = case_of_key[future.key]
        if future.status == "finished":
            rows, records = result
            for record in records:  # what the worker logged
                logging.getLogger(record.name).handle(record)
        else:
            rows = failed_rows(dict.fromkeys(names[case], reason_of(result[1])))
        yield case, rows
        future.release()


def gpu_of_worker() -> dict[str, torch.device]:
    """``device`` of a worker: workers that are numbered, as those of one machine are, share several GPUs in turn."""
    from distributed import get_worker

    gpus = torch.cuda.device_count()
    number = get_worker().name
    if gpus > 1 and isinstance(number, int):
        return {"device": torch.device("cuda", number % gpus)}
    return {}


def _translate_case(
    entry: dict[str, Source | None], run: _Run
) -> tuple[list[Row], list[logging.LogRecord]]:
    """Translate one case in a worker, whose components are kept for the next one; log records are returned."""
    records: list[logging.LogRecord] = []
    handler = _Records(records)  # type: ignore[arg-type]
    logger = logging.getLogger(PACKAGE)
    logger.addHandler(handler)
    logger.setLevel(run.log_level)
    logging.captureWarnings(True)
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)
    silence_itk()
    owner = OWNER.set(run.name)
    try:
        if getattr(_worker, "run", None) != run.name:
            _worker.parser = inference_parser(**{**gpu_of_worker(), **run.arguments})
            _worker.run = run.name
        _worker.parser.get_parsed_content("cases").datalist = [entry]
        with plain_errors():
            return translate_cases(_worker.parser), records
    finally:
        OWNER.reset(owner)
        logger.removeHandler(handler)
