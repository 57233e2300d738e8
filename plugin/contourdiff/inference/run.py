# SPDX-License-Identifier: Apache-2.0
"""The whole run of an inference config: check, translate, report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

from monai.bundle import ConfigParser

from contourdiff.config_checks import SETTINGS, check_values
from contourdiff.data.cases import TranslationCases
from contourdiff.data.checks import check_output_dir
from contourdiff.data.nifti_names import case_of
from contourdiff.inference.evaluator import CaseEvaluator
from contourdiff.inference.inferer import VolumeInferer
from contourdiff.inference.progress import RunProgress, run_progress, slice_count

logger = logging.getLogger(__name__)


def run_inference(parser: ConfigParser) -> None:
    """Check all cases, then translate them for each contrast; of several, the files are ``<case>_<contrast>_...``.

    Uses ``network``, ``evaluator``, ``cases``, ``axcodes``, ``contrast`` and ``contrasts`` of the config. Raises
    ``ValueError`` or ``OSError`` if nothing can be translated, ``ValueError`` after all others if a case failed.
    """
    check_values({name: parser.get_parsed_content(name) for name in SETTINGS if name in parser})
    contrasts = _contrasts(parser)
    if len(contrasts) > 1:
        _use_contrast(parser, contrasts[0])
    parser.get_parsed_content("network")
    evaluator, cases, axcodes = (parser.get_parsed_content(name) for name in ("evaluator", "cases", "axcodes"))
    if cases.dataset_dir.is_dir():
        check_output_dir(cases.output_dir)
    suffixes = [f"_{name}" for name in contrasts] if len(contrasts) > 1 else [cases.case_suffix]
    cases.check(suffixes)
    inferer = cast(VolumeInferer, evaluator.inferer)
    slices, failed = {}, []
    for suffix in suffixes:
        cases.select(suffix)
        for path in (item["image"] for item in cases.items):
            slices[f"{case_of(path)}{suffix}"] = slice_count(path, axcodes, inferer.slice_axis)
    with run_progress(slices, bool(inferer.progress)) as progress:
        for number, progress.suffix in enumerate(suffixes):
            if number:
                parser["cases"] = cases  # which are checked already
                _use_contrast(parser, contrasts[number])
            cases.select(progress.suffix)
            if failure := _translate_cases(parser.get_parsed_content("evaluator"), cases, progress):
                failed.append(f"{contrasts[number]}: {failure}" if len(contrasts) > 1 else failure)
    if failed:
        raise ValueError("; ".join(failed))


def _contrasts(parser: ConfigParser) -> list[str]:
    """Names of the contrasts to translate to; ``ValueError`` if one is unknown."""
    wanted = parser.get("contrast")
    contrasts = [name.strip() for name in wanted.split(",")] if isinstance(wanted, str) else list(wanted or [])
    known = parser.get_parsed_content("contrasts") if "contrasts" in parser else []
    unknown = [name for name in contrasts if name not in known]
    if unknown and (known or len(contrasts) > 1):
        raise ValueError(f"contrast must be out of {list(known)}, got {unknown}; pass another")
    return contrasts


def _use_contrast(parser: ConfigParser, name: str) -> None:
    """Set one of several contrasts."""
    parser["contrast"], parser["case_suffix"] = name, f"_{name}"
    parser.parse(reset=True)


def _translate_cases(evaluator: CaseEvaluator, cases: TranslationCases, progress: RunProgress) -> str:
    """Translate the selected cases and log a summary; return what failed."""
    cast(VolumeInferer, evaluator.inferer).progress = progress
    if cases.items:
        evaluator.run()
    failures = {**cases.failures, **evaluator.failures}
    for case in cases.kept:
        logger.info("%s: kept, its translation already exists (pass --overwrite true to translate it again)", case)
    for case, reason in failures.items():
        logger.error("%s: failed, %s", case, reason)
    counts = len(evaluator.completed), len(cases.kept), len(failures)
    logger.info("%d translated, %d kept, %d failed; results are in %s", *counts, Path(cases.output_dir).resolve())
    named = "; ".join(f"{case}: {reason}" for case, reason in list(failures.items())[:3])
    return f"{len(failures)} of {sum(counts)} cases failed: {named}{'; ...' if counts[2] > 3 else ''}" if named else ""
