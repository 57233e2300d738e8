# SPDX-License-Identifier: Apache-2.0
"""What the commands share: their registration, arguments and settings."""

from __future__ import annotations

import gc
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from fire.parser import DefaultParseValue

from contourdiff.limits import SettingError
from contourdiff.logs import silence_itk

Argument = tuple[str, dict[str, Any]]


class Command(NamedTuple):
    """A command: the function that runs it, a line of help, its arguments, and examples."""

    run: Callable[..., None]
    text: str
    arguments: tuple[Argument, ...]
    examples: str = ""


def argument(name: str, text: str | None = None, **options: Any) -> Argument:
    """An argument with its help, which ends with the default of an option, and the options of ``argparse``."""
    return name, {"help": text, **options}


def flag(name: str, text: str) -> Argument:
    """An option that is on or off."""
    return argument(f"--{name}", f"{text}; default: off", action="store_true")


def several(name: str, text: str, metavar: str = "NAME=VALUE") -> Argument:
    """An option that takes a list."""
    return argument(f"--{name}", f"{text}; default: none", nargs="*", default=[], metavar=metavar)


OUTPUT = argument("output_dir", "folder to write to")
BUNDLE = argument("--bundle", "folder of the bundle; default: the one beside this package")
DEVICE = argument("--device", "cpu, cuda, cuda:1; default: a GPU if there is one")
OVERLAYS = several(
    "overlays", "overlays of inference.json, such as fast, or paths of others", "NAME"
)
INFERENCE = several("settings", "settings of inference.json, such as seed=1")
CONFIG = (OVERLAYS, INFERENCE, BUNDLE)
"""How any command that translates changes ``inference.json``."""
ANATOMY = argument(
    "--anatomy",
    "settings and weights for it; default: lumbar",
    choices=("lumbar", "hip_thigh"),
)
CT_OR_FOLDER = "CT file, folder of CT, DICOM or BIDS, datalist (CSV, JSON), or a URL"
TRANSLATOR = (
    argument(
        "--scheduler", "Dask scheduler of such workers; default: none", metavar="tcp://HOST:PORT"
    ),
    argument("--series", "UID of one of several CT series; default: the only one", metavar="UID"),
    ANATOMY,
    argument("--weights", "weights for the network of the bundle; default: the bundle's"),
    DEVICE,
)
"""What ``translate`` and ``pairs`` share, behind ``--workers``."""
SHAPES = (
    several("bone", "classes, or label values, that are bone, which MR shows otherwise", "NAME"),
    argument("--shapes", "shapes of each CT, the first of them unwarped; default: 8", type=int),
    argument("--workers", "processes that share the shapes; default: 1", type=int, metavar="N"),
)
"""What ``pairs`` and ``transfer`` share."""
TRAIN = several("settings", "settings of train.json, such as dataset_dir=mr")


@contextmanager
def uncollected() -> Iterator[None]:
    """Import large packages without the garbage collector, which would visit their objects again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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
    """``["seed=1", "amp=false"]`` -> ``{"seed": 1, "amp": False}``; ``ValueError`` as [`pairs_of`][]."""
    return {name: parse_value(value) for name, value in pairs_of(pairs).items()}


def pairs_of(pairs: Sequence[str]) -> dict[str, str]:
    """``["t1=*_t1_*"]`` -> ``{"t1": "*_t1_*"}``; ``ValueError`` for a text without ``=``."""
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise SettingError(f"expected settings as name=value, got {wrong}")
    return dict(pair.split("=", 1) for pair in pairs)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are on the command line: without ``None``, flags that are off and empty lists."""
    present = {}
    for name, value in options.items():
        if value is not None and value is not False and value != []:
            present[name] = value
    return present


def is_quiet() -> bool:
    """Whether a run is to show warnings and errors alone; ITK is silenced as the command line asks for."""
    silence_itk()
    return logging.getLogger("contourdiff").level > logging.INFO


def print_values(values: Mapping[str, Any]) -> None:
    """Print a line for each value."""
    for name, value in values.items():
        sys.stdout.write(f"{name}: {value}\n")
