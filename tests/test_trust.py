# SPDX-License-Identifier: Apache-2.0
"""A config that can run code runs from the command line only if it is the installed bundle's, or was accepted."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from contourdiff import cli
from contourdiff.cli.program import PROGRAM
from contourdiff.cli.trust import check_trust, config_digest
from contourdiff.phantom import write_phantom
from helpers.paths import CONFIGS

CODE = "$__import__('pathlib').Path({!r}).touch()"


def write(path: Path, config: Any) -> str:
    path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "config",
    [
        {"seed": "$1 + 1"},
        {"imports": ["$import os"]},
        {"network_def": {"_target_": "os.system", "command": "true"}},
        {"network_def#_target_": "os.system"},
        {"a": [{"b": ["%other.json::key"]}]},
        "{not json",
    ],
)
def test_a_config_that_can_run_code_is_refused_until_its_digest_is_given(
    tmp_path: Path, config: Any
) -> None:
    overlay = write(tmp_path / "o.json", config)
    with pytest.raises(
        ValueError, match=r"expected configs of the installed bundle, got .*o\.json"
    ) as caught:
        check_trust(None, [overlay], None)
    digest = str(caught.value).split()[-1]
    assert re.fullmatch("[0-9a-f]{64}", digest)
    check_trust(None, [overlay], digest)
    write(tmp_path / "o.json", {"seed": "$2 + 2"})
    with pytest.raises(ValueError, match="expected configs of the installed bundle"):
        check_trust(None, [overlay], digest)


@pytest.mark.parametrize(
    "config", [{"seed": 1, "window_hu": [-160, 240]}, {"ckpt_path": "@bundle_root"}, {}]
)
def test_plain_values_need_no_digest(tmp_path: Path, config: Any) -> None:
    check_trust(None, ["fast", write(tmp_path / "o.json", config)], None)


def test_a_copy_of_the_bundle_is_the_bundle_and_a_changed_one_is_not(tmp_path: Path) -> None:
    shutil.copytree(CONFIGS.parent, tmp_path / "b")
    check_trust(tmp_path / "b", [], None)
    changed = tmp_path / "b" / "configs" / "fast.json"
    write(changed, json.loads(changed.read_text("utf-8")) | {"seed": "$7"})
    with pytest.raises(ValueError, match=r"got .*fast\.json, which can run any code"):
        check_trust(tmp_path / "b", [], None)
    check_trust(tmp_path / "b", [], config_digest([changed]))


def test_code_of_a_stranger_does_not_run_from_the_command_line(tmp_path: Path) -> None:
    write_phantom(tmp_path / "ct", shape=(16, 24, 24))
    ran, overlay = tmp_path / "ran", tmp_path / "o.json"
    write(overlay, {"initialize": [CODE.format(str(ran)), "$1 / 0"]})
    arguments = [
        "translate",
        str(tmp_path / "ct"),
        str(tmp_path / "mr"),
        "--overlays",
        str(overlay),
        "-q",
    ]
    with pytest.raises(SystemExit, match="error: expected configs of the installed bundle"):
        cli.main(arguments)
    assert not ran.exists()
    assert not (tmp_path / "mr").exists()
    with pytest.raises(
        SystemExit, match="error: expected a config that can be built, got ZeroDivisionError"
    ):
        cli.main([*arguments, "--trust-config", config_digest([overlay])])
    assert ran.exists()


def test_every_command_that_takes_a_bundle_takes_the_digest() -> None:
    for name, command in PROGRAM.commands.items():
        takes = {argument for argument, _ in command.arguments}
        if "--overlays" in takes:
            assert "--bundle" in takes, f"{name} reads configs, but not --trust-config"
