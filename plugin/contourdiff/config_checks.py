# SPDX-License-Identifier: Apache-2.0
"""Validate what a config says before any work: names of settings, their values, and whether it can be built."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from monai.bundle import ReferenceResolver

COMMENT = "//"
WHOLE = {
    "seed": (0, 2**63 - 1), "slice_axis": (0, 2), "filter_classes": (2, 5), "margin_px": (0, 4096),
    "num_inference_steps": (1, 10**6), "num_refinement_steps": (1, 10**6), "candidates": (1, 10**4),
    "max_rounds": (1, 10**4), "batch_size": (1, 10**6), "cases_at_once": (1, 10**4), "num_workers": (0, 1024),
}  # fmt: skip
"""Smallest and largest value of whole numbers; the cost of the filter grows steeply with its classes."""
NUMBERS = {
    "spacing_mm": (0.01, 100), "min_object_mm2": (0, 1e12), "max_hole_mm2": (0, 1e12), "contour_sigma_px": (0, 100),
    "contour_low_threshold": (0, 255), "contour_high_threshold": (0, 255), "eta": (0, 1), "fidelity_limit": (0, 1),
    "mean_threshold": (0, math.inf), "distance_threshold": (0, math.inf), "reference_flicker": (0, math.inf),
    "noise_length_mm": (0, 1e6), "refinement_guidance": (0, 100), "fidelity_tolerance_mm": (0, 1e6),
}  # fmt: skip
FLAGS = (
    *("overwrite", "report", "unconditional", "save_fidelity_map", "save_uncertainty_map"),
    *("amp", "retain_heap", "progress"),
)
OPTIONAL = ("batch_size", "reference_flicker")
"""May be ``None``."""
SETTINGS = (*WHOLE, *NUMBERS, *FLAGS, "window_hu", "axcodes", "case_suffix", "contrast")
"""What [`check_values`][] knows; components check the others."""
AXES = ("LR", "PA", "IS")


def check_values(settings: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for the first setting of a translation whose value is of another type or out of range."""
    for name, value in settings.items():
        if not (value is None and name in OPTIONAL) and (expected := _expected(name, value)):
            raise ValueError(
                f"expected {name} to be {expected}, got {value!r}; pass another --{name}"
            )


def _expected(name: str, value: Any) -> str | None:
    """What a setting must be, or ``None`` where its value is that."""
    for limits, kind in ((WHOLE, int), (NUMBERS, (int, float))):
        if name in limits:
            low, high = limits[name]
            fits = isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high
            return (
                None if fits else f"a {'whole ' if kind is int else ''}number from {low} to {high}"
            )
    if name in FLAGS:
        return None if isinstance(value, bool) else "true or false"
    if name == "window_hu":
        numbers = isinstance(value, (list, tuple)) and [
            isinstance(one, (int, float)) for one in value
        ] == [True, True]
        return (
            None
            if numbers and -math.inf < value[0] < value[1] < math.inf
            else "two numbers, the lower one first"
        )
    if name == "axcodes":
        letters = isinstance(value, str) and sorted(
            next((a for a in AXES if c in a), c) for c in value
        ) == sorted(AXES)
        return None if letters else "a letter each of R or L, A or P, S or I"
    if name == "contrast":
        names = [value or ""] if isinstance(value, (str, type(None))) else value
        several = isinstance(names, (list, tuple)) and all(isinstance(one, str) for one in names)
        return None if several else "a name, or names with commas between them"
    if name == "case_suffix":
        plain = (
            isinstance(value, str)
            and value.isprintable()
            and "/" not in value
            and "\\" not in value
        )
        return None if plain else "a text without slashes"
    return None


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse top-level names that are not known; ``_meta_``, ``_desc_`` and comments always are."""
    known = [name for name in known if not name.startswith(("_", COMMENT))]
    for name in names:
        top = ReferenceResolver.split_id(name)[0]
        if top in known or top.startswith(("_", COMMENT)):
            continue
        nearest = difflib.get_close_matches(top, known, n=1, cutoff=0.0)
        raise ValueError(
            f"expected settings of the config, got {top!r}; did you mean {' or '.join(nearest)}?"
        )


def references(config: Any) -> Iterator[str]:
    """Entries that a config refers to, anywhere in it."""
    if isinstance(config, str):
        macro = [config[1:]] if config.startswith("%") else []
        yield from (*ReferenceResolver.match_refs_pattern(config), *macro)
    elif isinstance(config, (dict, list)):
        for value in config.values() if isinstance(config, dict) else config:
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
