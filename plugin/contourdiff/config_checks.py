# SPDX-License-Identifier: Apache-2.0
"""Validate what a config says before any work: names of settings, their values, and whether it can be built."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from monai.bundle import ReferenceResolver

COMMENT = "//"
AXES = ("LR", "PA", "IS")


class Limit(NamedTuple):
    """What a setting may be, in words and as a test."""

    expected: str
    accepts: Callable[[Any], bool]


def whole(low: int, high: int) -> Limit:
    """A whole number within limits, which belong to the range."""

    def accepts(value: Any) -> bool:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return is_whole and low <= value <= high

    return Limit(f"a whole number from {low} to {high}", accepts)


def number(low: float, high: float) -> Limit:
    """A number within limits, which belong to the range."""

    def accepts(value: Any) -> bool:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and low <= value <= high

    return Limit(f"a number from {low} to {high}", accepts)


def optional(limit: Limit) -> Limit:
    """``None``, or what another limit accepts."""
    return Limit(limit.expected, lambda value: value is None or limit.accepts(value))


def _is_window(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    if not all(isinstance(bound, (int, float)) for bound in value):
        return False
    return -math.inf < value[0] < value[1] < math.inf


def _is_orientation(value: Any) -> bool:
    if not isinstance(value, str) or len(value) != len(AXES):
        return False
    return all(any(letter in axis for letter in value) for axis in AXES)


def _is_file_name_part(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and not set(value) & {"/", "\\"}


def _is_contrast(value: Any) -> bool:
    if value is None or isinstance(value, str):
        return True
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


FLAG = Limit("true or false", lambda value: isinstance(value, bool))
LIMITS: dict[str, Limit] = {
    "case_suffix": Limit("a text without slashes", _is_file_name_part),
    "overwrite": FLAG,
    "progress": FLAG,
    "report": FLAG,
    "seed": whole(0, 2**63 - 1),
    "contrast": Limit("a name, or names with commas between them", _is_contrast),
    "axcodes": Limit("a letter each of R or L, A or P, S or I", _is_orientation),
    "slice_axis": whole(0, 2),
    "spacing_mm": number(0.01, 100),
    "window_hu": Limit("two numbers, the lower one first", _is_window),
    "filter_classes": whole(2, 5),  # the cost of the filter grows steeply with them
    "min_object_mm2": number(0, 1e12),
    "max_hole_mm2": number(0, 1e12),
    "contour_sigma_px": number(0, 100),
    "contour_low_threshold": number(0, 255),
    "contour_high_threshold": number(0, 255),
    "margin_px": whole(0, 4096),
    "num_inference_steps": whole(1, 10**6),
    "num_refinement_steps": whole(1, 10**6),
    "refinement_guidance": number(0, 100),
    "eta": number(0, 1),
    "candidates": whole(1, 10**4),
    "max_rounds": whole(1, 10**4),
    "mean_threshold": number(0, math.inf),
    "distance_threshold": number(0, math.inf),
    "noise_length_mm": number(0, 1e6),
    "unconditional": FLAG,
    "fidelity_tolerance_mm": number(0, 1e6),
    "fidelity_limit": number(0, 1),
    "reference_flicker": optional(number(0, math.inf)),
    "save_fidelity_map": FLAG,
    "save_uncertainty_map": FLAG,
    "batch_size": optional(whole(1, 10**6)),
    "amp": FLAG,
    "retain_heap": FLAG,
    "num_workers": whole(0, 1024),
}
"""Settings of ``inference.json`` whose values are checked here, before anything is built; components check the others.

A component that is built from Python refuses only what it cannot work with.
"""
SETTINGS = tuple(LIMITS)


def check_values(settings: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for the first setting of a translation whose value is of another type or out of range."""
    for name, value in settings.items():
        limit = LIMITS.get(name)
        if limit is not None and not limit.accepts(value):
            raise ValueError(
                f"expected {name} to be {limit.expected}, got {value!r}; pass another --{name}"
            )


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse top-level names that are not known; ``_meta_``, ``_desc_`` and comments always are."""
    settings = [name for name in known if not name.startswith(("_", COMMENT))]
    for name in names:
        top = ReferenceResolver.split_id(name)[0]
        if top in settings or top.startswith(("_", COMMENT)):
            continue
        nearest = difflib.get_close_matches(top, settings, n=1, cutoff=0.0)
        raise ValueError(
            f"expected settings of the config, got {top!r}; did you mean {' or '.join(nearest)}?"
        )


def references(config: Any) -> Iterator[str]:
    """Entries that a config refers to, anywhere in it."""
    if isinstance(config, str):
        yield from ReferenceResolver.match_refs_pattern(config)
        if config.startswith("%"):
            yield config[1:]
    elif isinstance(config, dict):
        for value in config.values():
            yield from references(value)
    elif isinstance(config, list):
        for value in config:
            yield from references(value)


def root_cause(error: BaseException) -> BaseException:
    """The error itself, which MONAI wraps into the name of the transform or component that it occurred in."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise the ``ValueError``, ``OSError`` or ``ImportError`` that MONAI wraps into the name of a component.

    Any other fault of an entry, such as an argument that its component does not take, becomes a ``ValueError``.
    """
    try:
        yield
    except SyntaxError as error:
        raise ValueError(
            f"expected Python after $ in the config, got: {error}; repair the expression"
        ) from error
    except RuntimeError as error:
        cause = root_cause(error)
        if isinstance(cause, (ValueError, OSError, ImportError)):
            raise cause from None
        if str(error).startswith(("Failed to evaluate", "Failed to instantiate")):
            reason = " ".join(f"{type(cause).__name__}: {cause}".split())
            raise ValueError(
                f"expected a config that can be built, got {reason}; repair its entry"
            ) from error
        raise
