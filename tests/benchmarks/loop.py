# SPDX-License-Identifier: Apache-2.0
"""Time of a translation: the paper's loop as it ships, the same with an expert's switches, and ours.

Every variant has a process of its own, for the settings of the memory allocator are a process's. The parent lets one
work at a time, in turns, so that what else happens on the machine happens to all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import IO, Any, cast

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.contours import middle_contours, random_contours
from benchmarks.sequential import SequentialSampler, Translation, translate_in_sequence
from benchmarks.settings import Settings, make_inferer, make_network, make_scheduler, table
from contourdiff.inference import Execution
from contourdiff.sampling.selection import SelectionRules

VARIANTS = ("paper", "expert", "ours")
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_TOP_PAD_": "536870912",
}
TOLERANCE = 0.05
"""Gray levels by which translations of two variants may differ."""
CANDIDATES = 4
COLUMNS = (
    "network",
    "variant",
    "rounds",
    "min, s",
    "median, s",
    "max - min, s",
    "times ours: median (min to max)",
)

Translate = Callable[[], Translation]


def run(network: str, settings: Settings, directory: Path) -> dict[str, Any]:
    """Check that all variants translate the same, then time them in turns.

    Returns:
        Seconds of every variant and round, the ratios, and ``failures``: what differs, in words.
    """
    job, facts = _job(network, settings, directory)
    first: dict[str, dict[str, Any]] = {}
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    workers = {variant: _start(variant, job) for variant in VARIANTS}
    try:
        for variant in tqdm(VARIANTS, f"{network}: warm-up", leave=False):
            first[variant] = _ask(workers[variant])
        failures = differences(first)
        rounds = 0 if failures else settings.rounds
        for _ in tqdm(range(rounds), f"{network}: rounds", unit="round", leave=False):
            for variant in VARIANTS:
                seconds[variant].append(_ask(workers[variant])["seconds"])
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()
    return {
        **facts,
        "picks": first["ours"]["picks"],
        "calls": {variant: answer["calls"] for variant, answer in first.items()},
        "largest_difference": max(_difference(first, variant) for variant in VARIANTS),
        "seconds": seconds,
        "failures": failures,
    }


def variant_of(
    name: str, network: str, contours: torch.Tensor, steps: int, rules: SelectionRules
) -> Translate:
    """Translation of ``contours (slices, H, W)`` by one of ``VARIANTS``, to be called without arguments."""
    scheduler = make_scheduler()
    if name == "ours":
        execution = Execution(batch_size=rules.candidates, acceleration="lean", retain_heap=True)
        return by_inferer(make_network(network, flash=True), contours, steps, rules, execution)
    expert = name == "expert"
    layout = torch.channels_last if expert else torch.contiguous_format
    model = make_network(network).to(memory_format=layout)  # type: ignore[call-overload]  # missing in torch's stubs

    def translate() -> Translation:
        with torch.inference_mode() if expert else torch.no_grad():
            sampler = SequentialSampler(model, scheduler, steps, rules.candidates, layout)
            return translate_in_sequence(contours, sampler, rules)

    return translate


def by_inferer(
    model: Any, contours: torch.Tensor, steps: int, rules: SelectionRules, execution: Execution
) -> Translate:
    """Translation of ``contours (slices, H, W)``, framed whole, by our inferer."""
    inferer = make_inferer(steps, rules, execution, margin_px=max(contours.shape))

    def translate() -> Translation:
        (result,) = inferer.translate(contours[None, None], model)
        picks = []
        for choice in result.choices:
            if choice is not None:
                picks.append((choice.slice_index, choice.round, choice.candidate))
        return Translation(result.gray_levels[0], picks, result.network_calls)

    return translate


def differences(answers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What ``paper`` and the others do not agree in; each answer has ``picks`` and a ``volume``, or a path to one."""
    failures = []
    expected = answers["paper"]["picks"]
    for variant, answer in answers.items():
        largest = _difference(answers, variant)
        if answer["picks"] != expected:
            failures.append(f"{variant} picks {answer['picks']}, paper {expected}")
        if not largest <= TOLERANCE:
            failures.append(
                f"{variant} and paper differ by {largest:.3g} gray levels, expected at most {TOLERANCE}"
            )
    return failures


def ratios(seconds: Mapping[str, Sequence[float]], variant: str) -> list[float]:
    """Seconds of ``variant`` over those of ours, round by round."""
    return np.divide(seconds[variant], seconds["ours"]).tolist()


def report(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of the results of all networks."""
    rows = []
    sentences = []
    for result in results:
        agreement = "" if result["failures"] else "; picks are identical"
        sentences.append(
            f"- {result['network']}: {result['slices']} slices of {result['size_px']} x {result['size_px']}, contours "
            f"of {result['contours']}, DDIM with {result['steps']} steps, {CANDIDATES} candidates a round, up to "
            f"{result['max_rounds']} rounds, chains of network calls: {result['calls']}. Gray levels differ by up to "
            f"{result['largest_difference']:.2g}{agreement}."
        )
        for variant, times in result["seconds"].items():
            if times:
                rows.append(_row(result, variant))
    return "\n".join([*sentences, "", table(COLUMNS, rows)])


def _row(result: Mapping[str, Any], variant: str) -> list[object]:
    """Cells of ``COLUMNS``."""
    times = result["seconds"][variant]
    relative = ratios(result["seconds"], variant)
    return [
        result["network"],
        variant,
        len(times),
        min(times),
        median(times),
        max(times) - min(times),
        f"{median(relative):.2f} ({min(relative):.2f} to {max(relative):.2f})",
    ]


def _job(
    network: str, settings: Settings, directory: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a worker gets, and what the result says of it; the paper's network has less to do."""
    paper = network == "paper"
    slices = 1 if paper else settings.slices
    if settings.quick:
        name = "noise"
        contours = random_contours(slices, 32).numpy()
    else:
        contours, name = middle_contours(settings, directory)
    first = len(contours) // 2 - slices // 2
    path = directory / f"loop_{network}.npy"
    np.save(path, contours[first : first + slices])
    job = {
        "network": network,
        "contours": str(path),
        "steps": 2 if paper else settings.steps,
        "max_rounds": 1 if paper else 2,
    }
    facts = {**job, "contours": name, "slices": slices, "size_px": contours.shape[-1]}
    return job, facts


def _start(variant: str, job: Mapping[str, Any]) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    if variant == "expert":
        environment.update(ALLOCATOR)
    paths = [str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "benchmarks.loop", json.dumps({**job, "variant": variant})]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def _ask(worker: subprocess.Popen[str]) -> dict[str, Any]:
    """Let a worker translate once, and wait for it."""
    stdin = cast(IO[str], worker.stdin)
    stdin.write("translate\n")
    stdin.flush()
    line = cast(IO[str], worker.stdout).readline()
    if not line:
        raise RuntimeError(f"a worker ended with status {worker.wait()}; its message is above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _work(job: Mapping[str, Any]) -> None:
    """Translate once for every line of the standard input, and answer in a line of the standard output."""
    rules = SelectionRules(candidates=CANDIDATES, max_rounds=job["max_rounds"])
    contours = torch.from_numpy(np.load(job["contours"]))
    translate = variant_of(job["variant"], job["network"], contours, job["steps"], rules)
    path = Path(job["contours"]).with_name(f"loop_{job['network']}_{job['variant']}.npy")
    for _ in sys.stdin:
        start = time.perf_counter()
        translation = translate()
        answer = {
            "seconds": time.perf_counter() - start,
            "picks": translation.picks,
            "calls": translation.calls,
            "volume": str(path),
        }
        np.save(path, translation.volume.numpy())
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _volume(answer: Mapping[str, Any]) -> np.ndarray:
    volume = answer["volume"]
    return np.load(volume) if isinstance(volume, str) else np.asarray(volume)


def _difference(answers: Mapping[str, Mapping[str, Any]], variant: str) -> float:
    """Largest difference from the paper's volume, in gray levels."""
    difference = _volume(answers[variant]) - _volume(answers["paper"])
    return float(np.abs(difference).max())


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
