# SPDX-License-Identifier: Apache-2.0
"""Validate what a config says before any work: names of settings, their values, and whether it can be built."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from monai.bundle import ReferenceResolver

from contourdiff.limits import SettingError, check_device, check_flag, check_number, check_whole

COMMENT = "//"
AXES = ("LR", "PA", "IS")
MAX_LABEL = 2**31 - 1


def check_window(name: str, value: Any) -> None:
    """Raise ``SettingError`` unless ``value`` is two finite numbers, the lower one first."""
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    if is_pair and all(isinstance(bound, (int, float)) for bound in value):
        low, high = value
        if -math.inf < low < high < math.inf:
            return
    raise SettingError(
        f"expected {name} to be two numbers, the lower one first, got {value!r}; pass another"
    )


def check_orientation(name: str, value: Any) -> None:
    """Raise ``SettingError`` unless ``value`` has a letter for each axis, such as ``RAS``."""
    has_letters = isinstance(value, str) and len(value) == len(AXES)
    if not has_letters or not all(set(value) & set(axis) for axis in AXES):
        raise SettingError(
            f"expected {name} to be a letter each of R or L, A or P, S or I, got {value!r}; pass another"
        )


def check_file_name_part(name: str, value: Any) -> None:
    """Raise ``SettingError`` unless ``value`` is a text that may be part of the name of a file."""
    if not isinstance(value, str) or not value.isprintable() or set(value) & {"/", "\\"}:
        raise SettingError(
            f"expected {name} to be a text without slashes, got {value!r}; pass another"
        )


def check_contrast(name: str, value: Any) -> None:
    """Raise ``SettingError`` unless ``value`` is a name, a list of names, or ``None``."""
    names = value if isinstance(value, (list, tuple)) else [value or ""]
    if not all(isinstance(contrast, str) for contrast in names):
        raise SettingError(
            f"expected {name} to be a name, or names with commas between them, got {value!r}; pass another"
        )


def check_outline(name: str, value: Any) -> None:
    """Raise ``SettingError`` unless ``value`` is a flag, or a list of names of cases."""
    is_list = isinstance(value, (list, tuple))
    if not is_list or not all(isinstance(case, str) for case in value):
        check_flag(name, value)


def check_bone_values(name: str, value: Any) -> None:
    """Raise ``SettingError`` unless ``value`` is a list of label values above 0."""
    if not isinstance(value, (list, tuple)):
        raise SettingError(
            f"expected {name} to be a list of label values, got {value!r}; pass another, such as [27, 28]"
        )
    for number in value:
        check_whole(name, number, 1, MAX_LABEL)


def check_reference_flicker(name: str, value: Any) -> None:
    """Raise ``SettingError`` unless ``value`` is a number of 0 or more, or ``None``."""
    if value is not None:
        check_number(name, value, 0)


CHECKS: dict[str, Callable[[str, Any], None]] = {
    "case_suffix": check_file_name_part,
    "device": check_device,
    "overwrite": check_flag,
    "progress": check_flag,
    "report": check_flag,
    "save_dicom": check_flag,
    "contrast": check_contrast,
    "axcodes": check_orientation,
    "spacing_mm": partial(check_number, low=0.01, high=100),
    "window_hu": check_window,
    "filter_classes": partial(
        check_whole, low=2, high=5
    ),  # the filter's cost grows steeply with them
    "min_object_mm2": partial(check_number, low=0, high=1e12),
    "max_hole_mm2": partial(check_number, low=0, high=1e12),
    "contour_sigma_px": partial(check_number, low=0, high=100),
    "contour_low_threshold": partial(check_number, low=0, high=255),
    "contour_high_threshold": partial(check_number, low=0, high=255),
    "outline": check_outline,
    "bone_values": check_bone_values,
    "refinement_guidance": partial(check_number, low=0, high=100),
    "fidelity_tolerance_mm": partial(check_number, low=0, high=1e6),
    "fidelity_limit": partial(check_number, low=0, high=1),
    "reference_flicker": check_reference_flicker,
    "save_fidelity_map": check_flag,
    "save_uncertainty_map": check_flag,
    "num_workers": partial(check_whole, low=0, high=1024),
}
"""Settings of ``inference.json`` that are checked before anything is built; the components check the others."""


def check_values(settings: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for the first setting of a translation whose value is of another type or out of range."""
    for name, value in settings.items():
        if name in CHECKS:
            CHECKS[name](name, value)


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse top-level names that are not known; ``_meta_``, ``_desc_`` and comments always are."""
    settings = [name for name in known if not name.startswith(("_", COMMENT))]
    for name in names:
        top = ReferenceResolver.split_id(name)[0]
        if top in settings or top.startswith(("_", COMMENT)):
            continue
        nearest = difflib.get_close_matches(top, settings, n=1, cutoff=0.0)
        raise SettingError(
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
