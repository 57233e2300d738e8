# SPDX-License-Identifier: Apache-2.0
"""Command that lists settings: settings."""

from __future__ import annotations

import sys

from contourdiff.cli.commands import argument, flag
from contourdiff.cli.program import PROGRAM

CONFIGS = ("inference", "train", "train_one_step", "segmentation_train", "all")


@PROGRAM.command(
    "settings",
    "list the settings of a config, with default and meaning",
    argument(
        "config",
        "inference (default), train, train_one_step, segmentation_train or all",
        nargs="?",
        choices=CONFIGS,
        default="inference",
        metavar="CONFIG",
    ),
    flag("markdown", "print Markdown tables"),
    examples="""examples:
  contourdiff settings
  contourdiff settings train
  contourdiff settings all --markdown > settings.md""",
)
def _settings(config: str, markdown: bool) -> None:
    from contourdiff.settings import MEANINGS, settings_page, settings_table, settings_text

    if config == "all" and markdown:
        text = settings_page()
    elif config == "all":
        text = "\n".join(f"{name}.json\n\n{settings_text(name)}" for name in MEANINGS)
    elif markdown:
        text = settings_table(config)
    else:
        text = settings_text(config)
    sys.stdout.write(text)
