# SPDX-License-Identifier: Apache-2.0
"""The lab's command line: what its commands take and say, and that options reach what they name."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from contourdiff import __version__
from contourdiff_lab.commands import LAB, main

ORDER = ["table", "baseline", "gap", "agreement", "steps", "quality", "paired"]


@pytest.mark.parametrize("name", LAB.commands)
def test_a_command_takes_what_its_function_takes(name: str) -> None:
    command = LAB.commands[name]
    names = {flag.lstrip("-") for flag, _ in command.arguments}
    parameters = inspect.signature(command.run).parameters.values()
    variadic = [p for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD]
    required = {p.name for p in parameters if p not in variadic}
    assert required <= names
    assert variadic or required == names
    assert command.text[0].islower()


@pytest.mark.parametrize("name", LAB.commands)
def test_a_command_explains_every_argument(name: str) -> None:
    """Each has a help text, and that of an option names its default."""
    for argument, options in LAB.commands[name].arguments:
        assert options["help"], argument
        if argument.startswith("--"):
            assert "default: " in options["help"], argument


def test_help_names_the_commands_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    positions = [text.index(f"\n    {name} ") for name in ORDER]
    assert positions == sorted(positions)
    assert list(LAB.commands) == ORDER
    assert "exit status:" in text


@pytest.mark.parametrize("name", LAB.commands)
def test_help_of_a_command_can_be_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: contourdiff-lab {name}" in capsys.readouterr().out


def test_the_lab_has_the_version_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"contourdiff-lab {__version__}\n"


def test_an_error_of_the_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: expected") as stop:
        main(["gap", str(tmp_path / "nowhere"), str(tmp_path), str(tmp_path / "out")])
    assert "\n" not in str(stop.value)


def test_a_wrong_command_line_has_status_2() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["table", "ct"])
    assert stop.value.code == 2


def test_options_reach_the_plan_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings as numbers; what is not passed has the plan's default."""
    plans: list[Any] = []
    monkeypatch.setattr(
        "contourdiff_lab.experiment.run.run_experiment", lambda plan: plans.append(plan) or "page"
    )
    options = ["--segmentation", "learning_rate=1e-4", "--unconditional", "learning_rate=5e-4"]
    main(["table", "ct", "mr", "out", *options, "--groups", "t1=*_t1_*", "--overlays"])
    main(["table", "ct", "mr", "out"])
    plan, default_plan = plans
    assert plan.segmentation == {"learning_rate": 1e-4}
    assert plan.unconditional == {"learning_rate": 5e-4}
    assert plan.groups == {"t1": "*_t1_*"}
    assert plan.overlays == []
    assert default_plan.overlays == ("fast",)
    assert default_plan.groups == {"all": "*"}


def test_options_reach_the_training_of_a_baseline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The translation has the device alone, since the rest is the training's."""
    calls: list[Any] = []

    def record(*paths: Any, **options: Any) -> None:
        calls.append((paths, options))

    for name in ("train_baseline", "translate_with_baseline"):
        monkeypatch.setattr(f"contourdiff_lab.baselines.training.{name}", record)
    options = ["--minutes", "30", "--pattern", "t1/*", "--device", "cpu"]
    main(["baseline", "maskgan", "ct", "mr", "out", *options, "--settings", "amp=true"])
    training, translation = calls
    assert training[0] == ("maskgan", "ct", "mr", "out")
    expected = {"minutes": 30.0, "file_pattern": "t1/*", "device": "cpu", "amp": True}
    assert training[1] == {**expected, "bundle": None}
    assert translation == (
        ("out", "ct", Path("out/translations")),
        {"bundle": None, "device": "cpu"},
    )
    assert capsys.readouterr().out.startswith("weights: out/generator.pt\n")


def test_a_pair_without_a_value_is_refused() -> None:
    with pytest.raises(SystemExit, match="expected settings as name=value, got"):
        main(["table", "ct", "mr", "out", "--groups", "t1"])
