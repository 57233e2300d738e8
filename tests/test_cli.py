# SPDX-License-Identifier: Apache-2.0
"""The command line: settings become values as MONAI's does, and errors of the input end with one line."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from fire.parser import DefaultParseValue

from contourdiff import __version__, cli


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1e-3", 1e-3),
        ("-2.5", -2.5),
        ("8", 8),
        ("0010", "0010"),
        ("1:30", "1:30"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("[-160, 240]", [-160, 240]),
        ("[a, b]", ["a", "b"]),
        ("$torch.device('cpu')", "$torch.device('cpu')"),
        ("mr/t1", "mr/t1"),
        ("", ""),
    ],
)
def test_settings_are_parsed_as_the_bundle_command_does(text: str, value: Any) -> None:
    parsed = cli.parse_settings([f"x={text}"])["x"]
    assert parsed == value
    assert type(parsed) is type(value)
    if text not in ("true", "null"):
        assert parsed == DefaultParseValue(text)


def test_a_learning_rate_reaches_the_experiment_as_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Any] = []
    monkeypatch.setattr("contourdiff.evaluation.experiment.run_experiment", lambda plan: plans.append(plan) or "page")
    cli.main(
        ["table", "ct", "mr", "out", "--segmentation", "learning_rate=1e-4", "--unconditional", "learning_rate=5e-4"]
    )
    assert plans[0].segmentation == {"learning_rate": 1e-4}
    assert plans[0].unconditional == {"learning_rate": 5e-4}


def test_a_pair_without_a_value_is_refused() -> None:
    with pytest.raises(SystemExit, match="expected settings as name=value, got"):
        cli.main(["translate", "ct", "mr", "--settings", "seed"])


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_takes_what_its_function_takes(name: str) -> None:
    function, text, arguments = cli.COMMANDS[name]
    names = {flag.lstrip("-") for flag, _ in arguments}
    parameters = inspect.signature(function).parameters
    required = {p.name for p in parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    assert required <= names
    assert required == names or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    assert text[0].islower()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"contourdiff {__version__}\n"


def test_an_error_of_the_input_is_one_line(tmp_path: Any) -> None:
    with pytest.raises(SystemExit, match=r"^error: expected") as stop:
        cli.main(["gap", str(tmp_path / "nowhere"), str(tmp_path), str(tmp_path / "out")])
    assert "\n" not in str(stop.value)
