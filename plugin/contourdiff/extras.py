# SPDX-License-Identifier: Apache-2.0
"""Packages that only some features require."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def import_extra(module: str, purpose: str, extra: str) -> Any:
    """A module of the optional dependencies ``extra``.

    Raises ``ImportError`` without it, which says what it is for, ``purpose``, and what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{purpose}; pip install 'contourdiff[{extra}]'") from error
