# SPDX-License-Identifier: Apache-2.0
"""Every setting has one meaning, its default is the config's, and the page is what the command prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contourdiff import cli
from contourdiff.settings import MEANINGS, settings_of
from helpers.paths import CONFIGS, REPOSITORY


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    cli.main(["settings", *arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize("config", MEANINGS)
def test_every_setting_has_a_meaning_and_no_meaning_is_left_over(config: str) -> None:
    names = [setting.name for setting in settings_of(config)]
    assert [name for name in MEANINGS[config] if name not in names] == []


@pytest.mark.parametrize("config", MEANINGS)
def test_defaults_are_those_of_the_config(config: str) -> None:
    entries = json.loads((CONFIGS / f"{config}.json").read_text())
    for setting in settings_of(config):
        value = entries[setting.name]
        if isinstance(value, str) and value:
            assert setting.default == value.removeprefix("$")
        else:
            assert json.loads(setting.default) == value


@pytest.mark.parametrize("config", MEANINGS)
def test_a_meaning_is_one_line_that_fits_a_table_cell(config: str) -> None:
    for meaning in MEANINGS[config].values():
        assert "|" not in meaning
        assert "\n" not in meaning
        assert not meaning.endswith(".")


def test_an_entry_that_is_no_setting_is_not_listed() -> None:
    names = [setting.name for setting in settings_of("inference")]
    assert "network_def" not in names
    assert "bundle_root" not in names


def test_a_setting_without_a_meaning_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(MEANINGS["inference"], "seed")
    with pytest.raises(KeyError, match="seed"):
        settings_of("inference")


def test_the_settings_of_a_bundle_elsewhere_are_listed(tmp_path: Path) -> None:
    entries = {"// settings": "", "seed": 7, "// network": "", "network_def": {}}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.json").write_text(json.dumps(entries))
    (setting,) = settings_of("inference", tmp_path)
    assert (setting.name, setting.default) == ("seed", "7")


def test_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    assert printed(["all", "--markdown"], capsys) == page


def test_the_command_lists_a_config_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["train"], capsys)
    assert "epoch_length = 100\n    steps of an epoch" in text
    assert printed(["all"], capsys).count(".json\n\n") == len(MEANINGS)
