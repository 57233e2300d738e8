# SPDX-License-Identifier: Apache-2.0
"""The whole run of an inference config: check, translate, summarize."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from monai.bundle import ConfigParser

from contourdiff.config_checks import CHECKS, check_values
from contourdiff.data.atomic import remove_partial_files
from contourdiff.data.bids import check_derivatives
from contourdiff.data.checks import check_output_dir
from contourdiff.data.inputs import Pair
from contourdiff.data.translation_cases import TranslationCases
from contourdiff.data.volumes import keep_voxels, open_volume, stored_axis
from contourdiff.inference.evaluator import CaseEvaluator
from contourdiff.inference.inferer import VolumeInferer
from contourdiff.inference.progress import run_progress
from contourdiff.inference.summary import Row, check_table, failed_rows, kept_rows, write_summary

A_DAY_S = 86400.0
"""Age of partial files that no other run writes."""


def translate_cases(parser: ConfigParser) -> list[Row]:
    """Check all cases, then translate them, with one line of progress; what became of each translation."""
    cases, pairs = prepared_cases(parser)
    with keep_voxels():
        cases.check(pairs)
        failures = dict(cases.failures)
        rows: list[Row] = []
        if cases.items:
            evaluator = parser.get_parsed_content("evaluator")
            _run_evaluator(evaluator, cases, parser.get_parsed_content("axcodes"))
            rows += evaluator.completed.values()
            failures.update(evaluator.failures)
    return [*rows, *kept_rows(cases.kept, cases.output_dir), *failed_rows(failures)]


def run_inference(
    parser: ConfigParser, translate: Callable[[ConfigParser], list[Row]] = translate_cases
) -> None:
    """Translate all cases to each contrast, and summarize.

    Uses ``network``, ``evaluator``, ``cases``, ``axcodes``, ``output_dir``, ``stats``, ``bids_dir`` and ``pages`` of
    the config, see [`contourdiff.inference.summary.write_summary`][] for the last three.

    Args:
        parser: of the config.
        translate: how the cases are translated.

    Raises:
        ValueError: if nothing can be translated; after all others are done, if a case failed.
        OSError: if a file or a folder is missing.
    """
    check_values({name: parser.get_parsed_content(name) for name in CHECKS if name in parser})
    output_dir = parser.get_parsed_content("output_dir")
    stats = _optional(parser, "stats")
    if stats is not None:
        check_table(stats)
    remove_partial_files(output_dir, older_than_s=A_DAY_S)
    pages = _optional(parser, "pages")
    bids_dir = _optional(parser, "bids_dir")
    rows = translate(parser)
    notes = parser.get_parsed_content("cases").notes
    write_summary(rows, output_dir, stats, bids_dir, pages, notes)


def prepared_cases(parser: ConfigParser) -> tuple[TranslationCases, dict[str, Pair]]:
    """``cases`` and what they found, none of it read; the weights are loaded and the output folder exists."""
    for name in ("network", "evaluator"):  # whose errors come before any file is written
        parser.get_parsed_content(name)
    cases: TranslationCases = parser.get_parsed_content("cases")
    pairs = cases.find()
    bids_dir = _optional(parser, "bids_dir")
    if bids_dir:
        check_derivatives(pairs, bids_dir)
    check_output_dir(cases.output_dir)
    return cases, pairs


def _optional(parser: ConfigParser, name: str) -> Any:
    return parser.get_parsed_content(name) if name in parser else None


def _run_evaluator(evaluator: CaseEvaluator, cases: TranslationCases, axcodes: str) -> None:
    inferer = cast(VolumeInferer, evaluator.inferer)
    slices = {}
    for item in cases.items:
        slices[item["name"]] = slice_count(item["image"], axcodes, inferer.slice_axis)
    shown = inferer.progress
    with run_progress(slices, bool(shown)) as progress:
        inferer.progress = progress
        try:
            evaluator.run()
        finally:
            inferer.progress = shown


def slice_count(path: str | Path, axcodes: str, slice_axis: int) -> int:
    """Slices of a volume along ``slice_axis`` once it is oriented to ``axcodes``, from its header.

    0 if there is no such file any more: its case fails as it is read.
    """
    try:
        image = open_volume(path)
    except OSError:
        return 0
    return int(image.shape[stored_axis(image.affine, axcodes, slice_axis)])
