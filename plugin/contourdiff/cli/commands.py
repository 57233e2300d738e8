# SPDX-License-Identifier: Apache-2.0
"""What the commands share: their registration, arguments and settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fire.parser import DefaultParseValue

Argument = tuple[str, dict[str, Any]]


class Command(NamedTuple):
    """A command: the function that runs it, a line of help, its arguments, and examples."""

    run: Callable[..., None]
    text: str
    arguments: tuple[Argument, ...]
    examples: str = ""


def argument(name: str, text: str | None = None, **options: Any) -> Argument:
    """An argument with its help and the options of ``argparse``."""
    return name, {"help": text, **options}


def flag(name: str, text: str) -> Argument:
    """An argument that is given or not."""
    return argument(f"--{name}", text, action="store_true")


def several(name: str, text: str, metavar: str = "NAME=VALUE") -> Argument:
    """An argument that takes a list."""
    return argument(f"--{name}", text, nargs="*", default=[], metavar=metavar)


OUTPUT = argument("output_dir", "folder to write to")
BUNDLE = argument("--bundle", "folder of the bundle, if not beside this package")
OVERLAYS = several(
    "overlays", "overlays of inference.json, such as fast, or paths of others", "NAME"
)
INFERENCE = several("settings", "settings of inference.json, such as seed=1")
TRAIN = several("settings", "settings of train.json, such as dataset_dir=mr")


def parse_value(text: str) -> Any:
    """Value of a setting as ``monai.bundle`` parses it, plus JSON's ``true``, ``false`` and ``null``.

    Examples:
        >>> [parse_value(text) for text in ("1e-4", "8", "false", "[1, 2]", "0010", "1:30", "ddim")]
        [0.0001, 8, False, [1, 2], '0010', '1:30', 'ddim']
    """
    try:
        return json.loads(text)
    except ValueError:
        return DefaultParseValue(text)


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``["seed=1", "amp=false"]`` -> ``{"seed": 1, "amp": False}``."""
    return {name: parse_value(value) for name, value in pairs_of(pairs).items()}


def pairs_of(pairs: Sequence[str]) -> dict[str, str]:
    """``["t1=*_t1_*"]`` -> ``{"t1": "*_t1_*"}``."""
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"expected settings as name=value, got {wrong}")
    return dict(pair.split("=", 1) for pair in pairs)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are on the command line: without ``None``, flags that are off and empty lists."""
    return {
        name: value
        for name, value in options.items()
        if value is not None and value is not False and value != []
    }


def print_values(values: dict[str, Any]) -> None:
    """Print a line for each value."""
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in values.items()))
