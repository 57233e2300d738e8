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
from benchmarks.settings import Settings, make_network, make_scheduler, table
from contourdiff.inference import Execution, IndependentCandidates, VolumeInferer
from contourdiff.sampling.sampler import Sampler
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

Translate = Callable[[], Translation]


def run(network: str, settings: Settings, directory: Path) -> dict[str, Any]:
    """Check that all variants translate the same, then time them in turns.

    Returns:
        Seconds of every variant and round, the ratios, and ``failures``: what differs, in words.
    """
    job, told = _job(network, settings, directory)
    workers = {variant: _start(variant, job) for variant in VARIANTS}
    try:
        first = {
            variant: _ask(workers[variant])
            for variant in tqdm(VARIANTS, f"{network}: warm-up", leave=False)
        }
        failures = differences(first)
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for _ in tqdm(
            range(0 if failures else settings.rounds),
            f"{network}: rounds",
            unit="round",
            leave=False,
        ):
            for variant in VARIANTS:
                seconds[variant].append(_ask(workers[variant])["seconds"])
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()
    calls = {variant: answer["calls"] for variant, answer in first.items()}
    told |= {
        "picks": first["ours"]["picks"],
        "calls": calls,
        "largest_difference": _largest_difference(first),
    }
    return {**told, "seconds": seconds, "failures": failures}


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
    sampler = Sampler(make_scheduler(), num_inference_steps=steps)
    painter = IndependentCandidates(sampler, rules, execution)
    inferer = VolumeInferer(painter, margin_px=max(contours.shape), progress=False)

    def translate() -> Translation:
        (result,) = inferer.translate(contours[None, None], model)
        picks = [
            (each.slice_index, each.round, each.candidate)
            for each in result.choices
            if each is not None
        ]
        return Translation(result.gray_levels[0], picks, result.network_calls)

    return translate


def differences(answers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What ``paper`` and the others do not agree in; each answer has ``picks`` and a ``volume``, or a path to one."""
    failures = []
    for variant in (name for name in answers if name != "paper"):
        largest = float(np.abs(_volume(answers[variant]) - _volume(answers["paper"])).max())
        if answers[variant]["picks"] != answers["paper"]["picks"]:
            failures.append(
                f"{variant} picks {answers[variant]['picks']}, paper {answers['paper']['picks']}"
            )
        if not largest <= TOLERANCE:
            failures.append(
                f"{variant} and paper differ by {largest:.3g} gray levels, expected at most {TOLERANCE}"
            )
    return failures


def ratios(seconds: Mapping[str, Sequence[float]], variant: str) -> list[float]:
    """Seconds of ``variant`` over those of ours, round by round."""
    return [other / ours for other, ours in zip(seconds[variant], seconds["ours"], strict=True)]


def report(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of the results of all networks."""
    rows, sentences = [], []
    for result in results:
        sentences.append(
            f"- {result['network']}: {result['slices']} slices of {result['size_px']} x {result['size_px']}, contours "
            f"of {result['contours']}, DDIM with {result['steps']} steps, {CANDIDATES} candidates a round, up to "
            f"{result['max_rounds']} rounds, chains of network calls: {result['calls']}. Gray levels differ by up to "
            f"{result['largest_difference']:.2g}{'' if result['failures'] else '; picks are identical'}."
        )
        for variant, times in result["seconds"].items():
            if times:
                over = ratios(result["seconds"], variant)
                spread = max(times) - min(times)
                told = f"{median(over):.2f} ({min(over):.2f} to {max(over):.2f})"
                rows.append(
                    (
                        result["network"],
                        variant,
                        len(times),
                        min(times),
                        median(times),
                        spread,
                        told,
                    )
                )
    columns = (
        "network",
        "variant",
        "rounds",
        "min, s",
        "median, s",
        "max - min, s",
        "times ours: median (min to max)",
    )
    return "\n".join([*sentences, "", table(columns, rows)])


def _job(
    network: str, settings: Settings, directory: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a worker is told, and what the result tells of it."""
    small = network == "paper"
    slices, steps, max_rounds = (1, 2, 1) if small else (settings.slices, settings.steps, 2)
    if settings.quick:
        contours, name = random_contours(slices, 32).numpy(), "noise"
    else:
        contours, name = middle_contours(settings, directory)
    middle = len(contours) // 2 - slices // 2
    path = directory / f"loop_{network}.npy"
    np.save(path, contours[middle : middle + slices])
    job = {"network": network, "contours": str(path), "steps": steps, "max_rounds": max_rounds}
    told = {**job, "contours": name, "slices": slices, "size_px": contours.shape[-1]}
    return job, told


def _start(variant: str, job: Mapping[str, Any]) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    environment |= ALLOCATOR if variant == "expert" else {}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-m", "benchmarks.loop", json.dumps({**job, "variant": variant})]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def _ask(worker: subprocess.Popen[str]) -> dict[str, Any]:
    """Let a worker translate once, and wait for it."""
    told, heard = cast(IO[str], worker.stdin), cast(IO[str], worker.stdout)
    told.write("translate\n")
    told.flush()
    line = heard.readline()
    if not line:
        raise RuntimeError(f"a worker ended with status {worker.wait()}; its message is above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _work(job: Mapping[str, Any]) -> None:
    """Translate once for every line of the standard input, and tell of it in a line of the standard output."""
    rules = SelectionRules(candidates=CANDIDATES, max_rounds=job["max_rounds"])
    contours = torch.from_numpy(np.load(job["contours"]))
    translate = variant_of(job["variant"], job["network"], contours, job["steps"], rules)
    path = Path(job["contours"]).with_name(f"loop_{job['network']}_{job['variant']}.npy")
    for _ in sys.stdin:
        start = time.perf_counter()
        made = translate()
        answer = {
            "seconds": time.perf_counter() - start,
            "picks": made.picks,
            "calls": made.calls,
            "volume": str(path),
        }
        np.save(path, made.volume.numpy())
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _volume(answer: Mapping[str, Any]) -> np.ndarray:
    volume = answer["volume"]
    return np.load(volume) if isinstance(volume, str) else np.asarray(volume)


def _largest_difference(answers: Mapping[str, Mapping[str, Any]]) -> float:
    paper = _volume(answers["paper"])
    return max(float(np.abs(_volume(answer) - paper).max()) for answer in answers.values())


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
