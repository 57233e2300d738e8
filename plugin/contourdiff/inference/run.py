# SPDX-License-Identifier: Apache-2.0
"""The whole run of an inference config: check, translate, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from monai.bundle import ConfigParser

from contourdiff.config_checks import SETTINGS, check_values
from contourdiff.data.atomic import remove_partial_files
from contourdiff.data.bids import check_subjects
from contourdiff.data.cases import TranslationCases
from contourdiff.data.checks import check_output_dir
from contourdiff.data.inputs import Pair
from contourdiff.data.nifti_names import case_of
from contourdiff.inference.evaluator import CaseEvaluator
from contourdiff.inference.inferer import VolumeInferer
from contourdiff.inference.progress import RunProgress, run_progress, slice_count
from contourdiff.inference.summary import Outcome, check_table, report
from contourdiff.networks import contrast_label

A_DAY_S = 86400.0
"""Age of partial files that no other run writes."""
Contrasts = Mapping[str, str | None]
"""Contrast of each suffix of the files, ``<case><suffix>_mr.nii.gz``; ``None`` is that of the config."""


def translate_contrasts(parser: ConfigParser, contrasts: Contrasts) -> dict[str, Outcome]:
    """Check all cases once, then translate them for each contrast, with one line of progress; outcomes by suffix."""
    cases, pairs = prepared_cases(parser)
    cases.check(list(contrasts), pairs)
    evaluator, axcodes = (parser.get_parsed_content(name) for name in ("evaluator", "axcodes"))
    slices, outcomes = {}, {}
    for suffix in contrasts:
        cases.select(suffix)
        for path in (item["image"] for item in cases.items):
            slices[f"{case_of(path)}{suffix}"] = slice_count(
                path, axcodes, evaluator.inferer.slice_axis
            )
    with run_progress(slices, bool(evaluator.inferer.progress)) as progress:
        for number, (suffix, contrast) in enumerate(contrasts.items()):
            if number:
                parser["cases"] = cases  # which are checked already
                _use_contrast(parser, suffix, contrast)
            cases.select(suffix)
            evaluator = parser.get_parsed_content("evaluator")
            evaluator.class_label = _class_label(parser)
            evaluator.case_suffix = suffix
            outcomes[suffix] = _translate_cases(evaluator, cases, progress)
    return outcomes


def run_inference(
    parser: ConfigParser,
    translate: Callable[[ConfigParser, Contrasts], dict[str, Outcome]] = translate_contrasts,
) -> None:
    """Translate all cases to each contrast and report; of several contrasts, the files are ``<case>_<contrast>_...``.

    Uses ``network``, ``evaluator``, ``cases``, ``axcodes``, ``output_dir``, ``contrast``, ``contrasts``, ``stats``,
    ``bids_dir`` and ``pages`` of the config, see [`contourdiff.inference.summary.report`][] for the last three. Raises
    ``ValueError`` or ``OSError`` if nothing can be translated, ``ValueError`` after all others if a case failed.

    Args:
        parser: of the config.
        translate: how the cases are translated, for a parser that is set to the first of the contrasts.
    """
    check_values({name: parser.get_parsed_content(name) for name in SETTINGS if name in parser})
    output_dir = parser.get_parsed_content("output_dir")
    stats, bids_dir = (
        parser.get_parsed_content(name) if name in parser else None
        for name in ("stats", "bids_dir")
    )
    if stats is not None:
        check_table(stats)
    contrasts = _contrasts(parser)
    _use_contrast(parser, *next(iter(contrasts.items())))
    remove_partial_files(output_dir, older_than_s=A_DAY_S)
    pages = parser.get_parsed_content("pages") if "pages" in parser else None
    report(translate(parser, contrasts), output_dir, stats, bids_dir, pages)


def prepared_cases(parser: ConfigParser) -> tuple[TranslationCases, dict[str, Pair]]:
    """``cases`` and their pairs, none of them read; the weights are loaded and the output folder exists."""
    cases: TranslationCases = [
        parser.get_parsed_content(name) for name in ("network", "evaluator", "cases")
    ][-1]
    pairs = cases.pairs()
    if parser.get("bids_dir"):
        check_subjects(pairs)
    check_output_dir(cases.output_dir)
    return cases, pairs


def _contrasts(parser: ConfigParser) -> Contrasts:
    """Contrasts to translate to; ``ValueError`` if one is unknown."""
    wanted = parser.get("contrast")
    contrasts = (
        [name.strip() for name in wanted.split(",")]
        if isinstance(wanted, str)
        else list(wanted or [])
    )
    known = parser.get_parsed_content("contrasts") if "contrasts" in parser else []
    unknown = [name for name in contrasts if name not in known]
    if unknown and (known or len(contrasts) > 1):
        raise ValueError(f"contrast must be out of {list(known)}, got {unknown}; pass another")
    if len(contrasts) > 1:
        return {f"_{name}": name for name in contrasts}
    return {parser.get_parsed_content("case_suffix") if "case_suffix" in parser else "": None}


def _use_contrast(parser: ConfigParser, suffix: str, contrast: str | None) -> None:
    """Set one of several contrasts."""
    if contrast is not None:
        parser["contrast"], parser["case_suffix"] = contrast, suffix
        parser.parse(reset=True)


def _class_label(parser: ConfigParser) -> int | None:
    """Position of the contrast; ``None`` for a network of a single one."""
    contrasts = parser.get_parsed_content("contrasts") if "contrasts" in parser else []
    wanted = parser.get("contrast")
    name = wanted if isinstance(wanted, str) or not wanted else wanted[0]
    return contrast_label(contrasts, name) if contrasts else None


def _translate_cases(
    evaluator: CaseEvaluator, cases: TranslationCases, progress: RunProgress
) -> Outcome:
    """Translate the selected cases."""
    if not cases.items:
        return Outcome({}, cases.kept, cases.failures)
    inferer = cast(VolumeInferer, evaluator.inferer)
    shown, inferer.progress = inferer.progress, progress
    try:
        evaluator.run()
    finally:
        inferer.progress = shown
    return Outcome(dict(evaluator.completed), cases.kept, {**cases.failures, **evaluator.failures})
