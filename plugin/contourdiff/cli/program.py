# SPDX-License-Identifier: Apache-2.0
"""A command line: its commands, its parser, and what every run of it has around it."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import shtab
from tqdm.contrib.logging import logging_redirect_tqdm

from contourdiff import __version__
from contourdiff.cli.commands import BUNDLE, Argument, Command
from contourdiff.logs import LIBRARIES

EXIT_CODES = """exit status:
  0   all was done
  1   an input was refused, or a case failed (the others are done)
  2   the command line is wrong
  130 interrupted (143: terminated); the same command goes on where it stopped"""


PACKAGES = ("contourdiff", "contourdiff_lab")


@dataclass(eq=False)
class Program:
    """A program with subcommands.

    Args:
        name: what a user types.
        description: a line for its help.
        moved: commands that another program has now, name -> what to type instead.
    """

    name: str
    description: str
    moved: Mapping[str, str] = field(default_factory=dict)
    commands: dict[str, Command] = field(default_factory=dict, init=False)

    def command(
        self, name: str, text: str, *arguments: Argument, examples: str = ""
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Register a function as a command; its parameters are the names of the arguments."""

        def register(function: Callable[..., None]) -> Callable[..., None]:
            self.commands[name] = Command(function, text, arguments, examples)
            return function

        return register

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Parse the command line and run; an error of the input ends with one line and status 1."""
        arguments = sys.argv[1:] if arguments is None else arguments
        if arguments and arguments[0] in self.moved:
            sys.stderr.write(f"{self.name} {arguments[0]} is now: {self.moved[arguments[0]]}\n")
            raise SystemExit(2)
        values = vars(self.parser().parse_args(arguments))
        del values["print_completion"]
        run = self.commands[values.pop("command")].run
        verbose, quiet = values.pop("verbose"), values.pop("quiet")
        try:
            with _logging(verbose, quiet), logging_redirect_tqdm(), _one_signal():
                _check_trust(values)
                run(**values)
        except (ValueError, OSError, ImportError) as error:
            logging.getLogger(__name__).debug("traceback of the error below", exc_info=error)
            raise SystemExit(f"error: {error}") from error
        except KeyboardInterrupt as error:
            sys.stderr.write("interrupted\n")
            raise SystemExit(128 + int(error.args[0] if error.args else signal.SIGINT)) from error

    def parser(self) -> argparse.ArgumentParser:
        """Parser of all commands."""
        style = argparse.RawDescriptionHelpFormatter
        root = argparse.ArgumentParser(
            prog=self.name, description=self.description, epilog=EXIT_CODES, formatter_class=style
        )
        root.add_argument("--version", action="version", version=f"{self.name} {__version__}")
        shtab.add_argument_to(root, help="print the completion script of a shell")
        commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for name, (_, text, arguments, examples) in self.commands.items():
            command = commands.add_parser(
                name,
                help=text,
                description=f"{text[0].upper()}{text[1:]}.",
                epilog=examples,
                formatter_class=style,
            )
            for argument, options in arguments:
                command.add_argument(argument, **options)
            if BUNDLE in arguments:
                text = "accept configs that are not of the installed bundle, by the digest that the error names"
                command.add_argument("--trust-config", help=text, metavar="SHA256")
            command.add_argument(
                "--quiet", "-q", help="print warnings and errors alone", action="store_true"
            )
            command.add_argument(
                "--verbose", "-v", help="print all that the libraries log, too", action="store_true"
            )
        return root


def _check_trust(values: dict[str, Any]) -> None:
    """Take ``trust_config`` from the values of a command, and refuse other configs than the installed and accepted."""
    accepted, bundle, overlays = (
        values.pop("trust_config", None),
        values.get("bundle"),
        values.get("overlays") or (),
    )
    if bundle is not None or any(name.endswith(".json") for name in overlays):
        from contourdiff.cli.trust import check_trust

        check_trust(bundle, overlays, accepted)


@contextmanager
def _one_signal() -> Iterator[None]:
    """Let Ctrl-C or SIGTERM unwind the run, so that no half-written file stays; further ones are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        if not received:
            received.append(number)
            raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if received else handler)


@contextmanager
def _logging(verbose: bool, quiet: bool) -> Iterator[None]:
    """Short lines on standard error; with ``verbose`` the libraries' lines and all details, too."""
    template = "%(asctime)s - %(name)s - %(levelname)s - %(message)s" if verbose else "%(message)s"
    logging.basicConfig(format=template, stream=sys.stderr)
    levels = dict.fromkeys(LIBRARIES, logging.INFO if verbose else logging.ERROR)
    for name in PACKAGES:
        levels[name] = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    with warnings.catch_warnings():
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


NOW_IN_THE_LAB = {
    name: f"contourdiff-lab {name}" for name in ("agreement", "gap", "quality", "steps", "table")
}
NOW_IN_THE_LAB["rival"] = "contourdiff-lab baseline"
PROGRAM = Program("contourdiff", "Translate labelled CT into MR.", moved=NOW_IN_THE_LAB)
