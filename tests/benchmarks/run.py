# SPDX-License-Identifier: Apache-2.0
"""Run the benchmarks: ``python tests/benchmarks/run.py OUTPUT_DIR``; writes ``performance.md`` and ``.json``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpu, loop, memory, rounds, scaling, share
from benchmarks.contours import default_ct
from benchmarks.settings import Settings, machine, table
from contourdiff.data.atomic import without_nan, write_text

logger = logging.getLogger(__name__)

TITLES = {
    "loop": "The paper's loop and ours",
    "rounds": "Network calls against the pass rate",
    "memory": "Peak memory",
    "share": "Time outside the network",
    "gpu": "On a graphics card",
    "scaling": "Cost against the number of slices",
}
PARTS: dict[str, ModuleType] = {
    "rounds": rounds,
    "memory": memory,
    "share": share,
    "gpu": gpu,
    "scaling": scaling,
}
"""What has one result, in contrast to the loop, which has one for each network."""
Run = Callable[[Settings, Path], dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and not yet done; 1 if anything that must hold does not."""
    parsed = parser().parse_args(arguments)
    quick = parsed.quick
    settings = Settings(
        rounds=min(parsed.rounds, 1) if quick else parsed.rounds,
        steps=min(parsed.steps, 2) if quick else parsed.steps,
        slices=min(parsed.slices, 2) if quick else parsed.slices,
        quick=quick,
        ct=parsed.ct,
    )
    output = Path(parsed.output_dir)
    (output / "parts").mkdir(parents=True, exist_ok=True)
    jobs: dict[str, Run] = {}
    for part in parsed.only:
        jobs.update(jobs_of(part, quick))
    done: dict[str, Any] = {}
    bar = tqdm(jobs.items(), "benchmarks", unit="part")
    for job, run in bar:
        bar.set_postfix_str(job)
        done[job] = kept_or_run(job, run, settings, output, parsed.redo)
        write_reports(done, output)
    status = 0
    for job, outcome in done.items():
        for failure in outcome["result"]["failures"]:
            logger.error("%s: %s", job, failure)
            status = 1
    return status


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("output_dir", help="folder of the reports; finished parts are kept in it")
    options.add_argument(
        "--only", type=_parts, default=list(TITLES), help=f"some of {','.join(TITLES)}"
    )
    options.add_argument(
        "--rounds", type=int, default=5, help="counted rounds of timings; 0 compares outputs alone"
    )
    options.add_argument(
        "--steps", type=int, default=10, help="DDIM steps with the bundle's network"
    )
    options.add_argument(
        "--slices",
        type=int,
        default=3,
        help="slices of the loops with the bundle's network, up to 16",
    )
    options.add_argument(
        "--ct", default=default_ct(), help="CT whose contours are translated; empty: a phantom"
    )
    options.add_argument(
        "--quick", action="store_true", help="small, with tiny networks: no figures to be quoted"
    )
    options.add_argument("--redo", action="store_true", help="repeat parts that are finished")
    return options


def jobs_of(part: str, quick: bool) -> dict[str, Run]:
    """What a part consists of; each is kept by itself."""
    if part == "loop":
        networks = ("tiny",) if quick else ("bundle", "paper")
        return {f"loop {name}": partial(loop.run, name) for name in networks}
    return {part: PARTS[part].run}


def kept_or_run(job: str, run: Run, settings: Settings, output: Path, redo: bool) -> dict[str, Any]:
    """Result of one job; that of an earlier run with the same settings is taken, unless it is to be repeated."""
    path = output / "parts" / f"{job.replace(' ', '_')}.json"
    if path.is_file() and not redo:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept["settings"] == asdict(settings):
            return kept
    result = run(settings, output / "parts")
    part = {"settings": asdict(settings), "machine": machine(), "result": result}
    part = json.loads(json.dumps(without_nan(part)))
    if not result["failures"] and "skipped" not in result:
        write_text(path, json.dumps(part, indent=1))
    return part


def write_reports(done: Mapping[str, Mapping[str, Any]], output: Path) -> None:
    """Write ``performance.json`` and ``performance.md`` of the parts that are done."""
    write_text(output / "performance.json", json.dumps(done, indent=1))
    machines = [part["machine"] for part in done.values()]
    lines = ["# Performance", "", table(("machine", ""), list(machines[-1].items())), ""]
    if machines.count(machines[-1]) < len(machines):
        lines += ["Parts ran on different machines or versions; see `performance.json`.", ""]
    if any(part["settings"]["quick"] for part in done.values()):
        lines += ["A quick run, to test the benchmarks: no figures to be quoted.", ""]
    for name, title in TITLES.items():
        results = [part["result"] for job, part in done.items() if job.split()[0] == name]
        if not results:
            continue
        report = loop.report(results) if name == "loop" else PARTS[name].report(results[0])
        lines += [f"## {title}", "", report, ""]
        for result in results:
            lines += [f"**Failed**: {failure}\n" for failure in result["failures"]]
    write_text(output / "performance.md", "\n".join(lines))


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    unknown = [part for part in parts if part not in TITLES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"expected some of {','.join(TITLES)}, got {','.join(unknown)}"
        )
    return parts


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
