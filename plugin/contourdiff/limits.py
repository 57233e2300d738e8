# SPDX-License-Identifier: Apache-2.0
"""Refuse values of settings that are out of range or of another type, in one wording."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

MAX_SEED = 2**63 - 1


class SettingError(ValueError):
    """A setting does not exist, or its value is out of range or of another type: the command line is wrong."""


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Raise ``SettingError`` unless ``value`` is an ``int`` from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingError(
            f"expected {name} to be a whole number from {low} to {high}, got {value!r}; pass another"
        )


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise ``SettingError`` unless ``value`` is a number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise SettingError(
            f"expected {name} to be a number from {low} to {high}, got {value!r}; pass another"
        )


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise ``SettingError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise SettingError(f"{name} must be one of {list(choices)}, got {value!r}")


def check_device(name: str, value: Any) -> None:
    """Raise ``SettingError`` for a device, as torch's or by name, on which translations cannot be computed."""
    if str(value).partition(":")[0] == "mps":
        raise SettingError(
            f"expected {name} to be cpu or cuda, got {str(value)!r}: slices are compared in float64, which MPS does "
            "not have; pass cpu"
        )


def check_flag(name: str, value: Any) -> None:
    """Raise ``SettingError`` unless ``value`` is ``True`` or ``False``."""
    if not isinstance(value, bool):
        raise SettingError(f"expected {name} to be true or false, got {value!r}; pass another")
