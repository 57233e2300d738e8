# SPDX-License-Identifier: Apache-2.0
"""The command line: settings become values as MONAI's does, and errors of the input end with one line."""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fire.parser import DefaultParseValue

from contourdiff import __version__, cli
from contourdiff.cli.commands import parse_settings, uncollected
from contourdiff.cli.program import PROGRAM
from contourdiff.phantom import write_phantom
from contourdiff.weights import sha256_of
from helpers.networks import TINY_NETWORK, make_tiny_network
from helpers.paths import CONFIGS
from helpers.runs import tiny_training_settings
from helpers.volumes import make_mr

SHORT = (
    "image_size_px",
    "min_object_mm2",
    "filter_classes",
    "batch_size",
    "epoch_length",
    "warmup_steps",
    "val_interval",
)


def test_the_garbage_collector_is_on_again_after_a_failed_import() -> None:
    enabled = []

    def import_missing() -> None:
        with uncollected():
            enabled.append(gc.isenabled())
            raise ImportError("missing")

    with pytest.raises(ImportError, match="missing"):
        import_missing()
    assert [*enabled, gc.isenabled()] == [False, True]


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
    parsed = parse_settings([f"x={text}"])["x"]
    assert parsed == value
    assert type(parsed) is type(value)
    if text not in ("true", "null"):
        assert parsed == DefaultParseValue(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--settings", "seed"], "expected settings as name=value, got"),
        (["--settings", "sede=1"], "got 'sede'; did you mean seed"),
        (["--settings", "overwrite=yes"], "expected overwrite to be true or false"),
        (["--settings", "solver=euler"], "solver must be one of"),
        (["--seed", "-1"], "expected seed to be a whole number from 0 to"),
        (["--seed", "x"], "invalid int value"),
        (["--contrast", "t3"], "contrast must be out of"),
        (["--device", "abacus"], "expected a device that torch can use"),
        (["--device", "mps"], "expected device to be cpu or cuda, got 'mps': slices are"),
        (["--settings", "device=mps:0", "amp=false"], "expected device to be cpu or cuda, got"),
        (["--format", ".jpg"], "output_ext must be one of"),
        (["--stats", "a.txt"], r"expected a file \*.csv or \*.parquet"),
        (["--workers", "0"], "expected workers, 1 or more"),
        (["--workers", "2", "--scheduler", "tcp://127.0.0.1:1"], "pass either workers or"),
        (["--anatomy", "knee"], "invalid choice"),
        (["--draft", "--full"], "expected one of --fast, --draft and --full, got --draft, --full"),
        (["--unknown"], "unrecognized arguments"),
    ],
)
def test_a_wrong_command_line_has_status_2_and_writes_nothing(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_phantom(tmp_path / "ct", shape=(3, 24, 24))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["translate", str(tmp_path / "ct"), str(tmp_path / "mr"), *arguments])
    assert stop.value.code == 2
    assert re.search(reason, capsys.readouterr().err)
    assert [path for path in sorted(tmp_path.rglob("*")) if path.is_file()] == [
        path for path in before if path.is_file()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["settings all", "translate --help"])
def test_a_reader_that_has_enough_ends_the_program_in_silence(command: str) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "contourdiff", *command.split()],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == (0 if "--help" in command else 141)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "processes", "connected", "seconds"),
    [
        ([], 0, False, 0.25),
        ([], 0, False, 3.0),
        (["--settings", "num_workers=1"], 1, False, 1.0),
        (["--workers", "2"], 2, False, 0.25),  # they import
        (["--workers", "2"], 2, True, 1.0),
    ],
)
def test_ctrl_c_prints_one_line_whenever_it_comes(
    options: list[str], processes: int, connected: bool, seconds: float, tmp_path: Path
) -> None:
    """To the whole process group, as a terminal sends it, some seconds after it has so many worker processes."""
    for name in "ab":
        write_phantom(tmp_path / "ct", name, shape=(12, 80, 70), spacing_mm=(4.0, 2.0, 2.2))
    command = ["translate", str(tmp_path / "ct"), str(tmp_path / "mr"), "-q", *options]
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *command], stderr=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    try:
        wait_for_workers(child.pid, processes, connected)
        time.sleep(seconds)
        os.killpg(child.pid, signal.SIGINT)
        _, printed = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    assert printed == "interrupted\n"


def wait_for_workers(pid: int, count: int, connected: bool) -> None:
    """Until a process has so many workers, ``connected`` to the scheduler of Dask or not; at most a minute."""
    psutil = pytest.importorskip("psutil", reason="psutil comes with Dask")
    for _ in range(600 if count else 0):
        workers = []
        for child in psutil.Process(pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end at any time
                if "resource_tracker" not in " ".join(child.cmdline()):
                    connections = child.net_connections("tcp")
                    workers.append(any(item.status == "ESTABLISHED" for item in connections))
        if (workers.count(True) if connected else len(workers)) >= count:
            return
        time.sleep(0.1)


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
from contourdiff.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("name", PROGRAM.commands)
def test_a_command_takes_what_its_function_takes(name: str) -> None:
    function, text, arguments, _ = PROGRAM.commands[name]
    names = {flag.lstrip("-") for flag, _ in arguments}
    parameters = inspect.signature(function).parameters
    required = {p.name for p in parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    assert required <= names
    assert required == names or any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
    )
    assert text[0].islower()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"contourdiff {__version__}\n"


def test_an_error_of_the_input_is_one_line(tmp_path: Any) -> None:
    with pytest.raises(SystemExit, match=r"^error: expected a folder of translations") as stop:
        cli.main(["report", str(tmp_path / "nowhere")])
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    ("name", "now"),
    [(name, name) for name in ("table", "gap", "quality", "steps", "agreement")]
    + [("rival", "baseline")],
)
def test_a_command_that_moved_names_the_new_one(
    name: str, now: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "ct", "--any"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"contourdiff {name} is now: contourdiff-lab {now}\n"


def test_the_help_lists_commands_in_the_order_of_need() -> None:
    names = PROGRAM.ordered_names()
    assert names[:4] == ["example", "translate", "train", "report"]
    assert sorted(names) == sorted(PROGRAM.commands)


def test_every_argument_is_explained_and_every_option_names_its_default() -> None:
    for name, command in PROGRAM.commands.items():
        for argument, options in command.arguments:
            assert options["help"], f"{name} {argument}"
            if argument.startswith("--"):
                assert "default: " in options["help"], f"{name} {argument}"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts_name_the_commands(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--print-completion", shell])
    assert stop.value.code == 0
    script = capsys.readouterr().out
    assert all(name in script for name in (*PROGRAM.commands, "--contrast"))


def test_help_shows_examples_and_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["--help"], "exit status:"),
        (["translate", "--help"], "translate ct.nii.gz mr.nii.gz"),
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert expected in capsys.readouterr().out


def test_an_interrupt_has_a_status_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*given: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("contourdiff.translation.translate_path", interrupt)
    with pytest.raises(SystemExit) as stop:
        cli.main(["translate", "ct", "mr"])
    assert stop.value.code == 130


def test_info_names_versions_and_weights(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["info"])
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["contourdiff"] == __version__
    assert torch.__version__.startswith(lines["torch"])  # a wheel may add +cpu, +cu130
    assert lines["devices"].startswith("cpu")
    assert lines["model.pt"] == sha256_of(CONFIGS.parent / "models" / "model.pt")


@pytest.mark.slow
def test_a_training_starts_and_resumes_from_the_command_line(tmp_path: Path) -> None:
    mr, out = str(make_mr(tmp_path / "mr")), str(tmp_path / "out")
    network = ",".join(f"'{name}': {value!r}" for name, value in TINY_NETWORK.items())
    changes = {
        name: value
        for name, value in tiny_training_settings(tmp_path, tmp_path).items()
        if name in SHORT
    }
    pairs = [f"{name}={value}" for name, value in changes.items()]
    common = [
        "train",
        mr,
        out,
        "--datalist",
        "index.csv",
        "--device",
        "cpu",
        "--overlays",
        "train_single",
        "cpu",
        "-q",
    ]
    common += ["--settings", *pairs, f"network_def={{{network}}}"]
    with pytest.raises(SystemExit, match=r"expected a checkpoint in .*; start without --resume"):
        cli.main([*common[:3], "--resume", *common[3:]])
    cli.main([*common, "max_epochs=2"])
    assert (tmp_path / "out" / "checkpoint_epoch=2.pt").is_file()
    cli.main([*common[:3], "--resume", *common[3:], "max_epochs=4"])
    assert [path.name for path in (tmp_path / "out").glob("checkpoint*")] == [
        "checkpoint_epoch=4.pt"
    ]
    assert (
        torch.load(tmp_path / "out" / "model.pt", weights_only=True).keys()
        == make_tiny_network().state_dict().keys()
    )


def test_a_report_is_written_and_then_served(
    reported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, served = shutil.copytree(reported, tmp_path / "mr"), []
    (folder / "index.html").unlink()
    monkeypatch.setattr("contourdiff.report.serve", lambda *arguments: served.append(arguments))
    cli.main(["report", str(folder)])
    assert capsys.readouterr().out == f"{folder / 'index.html'}\n"
    assert (folder / "index.html").is_file()
    cli.main(["report", str(folder), "--serve", "--port", "8123"])
    assert served == [(folder, 8123)]
    with pytest.raises(SystemExit, match="error: expected a folder of translations at"):
        cli.main(["report", str(tmp_path / "none")])
