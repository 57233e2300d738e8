# SPDX-License-Identifier: Apache-2.0
"""The meaning of every setting of the bundle's configs; defaults are read from the configs."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigComponent, ConfigParser

from contourdiff.bundle import config_files
from contourdiff.config_checks import COMMENT
from contourdiff.tables import markdown_table

SECTIONS = ("// paths", "// settings")
"""Start of comments that head the settings of a config; other entries are its components."""
MEANINGS: dict[str, dict[str, str]] = json.loads(
    Path(__file__).with_name("setting_meanings.json").read_text(encoding="utf-8")
)
"""Config -> setting -> meaning, with its unit. Trainings name only what differs from ``inference``."""

PAGE = """# Settings

Every setting of the bundle's configs, with its default. Written by `contourdiff settings all --markdown`.

Set one with `--settings name=value`, with `--name value` of `python -m monai.bundle run`, or in an overlay. An unknown
name is an error that names the nearest setting. `@name` in a default is another entry of the config; a default with
parentheses is an expression.
"""


class Setting(NamedTuple):
    """A setting of a config, its default as text."""

    name: str
    default: str
    meaning: str


def settings_of(config: str = "inference", bundle: str | Path | None = None) -> list[Setting]:
    """Settings of ``inference``, ``train`` or another config of ``MEANINGS``, in the order of the config.

    Those of an overlay are the ones that it adds. Raises ``KeyError`` for a setting of the config without a meaning.
    """
    (path,) = config_files(bundle, base=config)
    meanings = {**MEANINGS["inference"], **MEANINGS[config]}
    settings = []
    section = ""
    for name, value in ConfigParser.load_config_file(path).items():
        if name.startswith(COMMENT):
            section = name
        elif section.startswith(SECTIONS) and not ConfigComponent.is_instantiable(value):
            settings.append(Setting(name, _as_text(value), meanings[name]))
    return settings


def settings_text(config: str) -> str:
    """Settings of a config for a terminal: ``name = default``, and below it the meaning."""
    lines = []
    for setting in settings_of(config):
        lines.append(f"{setting.name} = {setting.default}")
        lines.append(f"    {setting.meaning}")
    return "\n".join(lines) + "\n"


def settings_table(config: str) -> str:
    """Settings of a config as a Markdown table under a heading."""
    rows = []
    for setting in settings_of(config):
        meaning = html.escape(setting.meaning, quote=False)
        rows.append((f"`{setting.name}`", f"`{setting.default}`", meaning))
    table = markdown_table(("setting", "default", "meaning"), rows)
    return f"## {config}.json\n\n{table}\n"


def settings_page() -> str:
    """The page of all settings, Markdown."""
    tables = [settings_table(config) for config in MEANINGS]
    return "\n".join([PAGE, *tables])


def _as_text(value: Any) -> str:
    """A value of a config as a user types it; an expression without its ``$``."""
    if isinstance(value, str):
        return value.removeprefix("$") or '""'
    return json.dumps(value)
