# SPDX-License-Identifier: Apache-2.0
"""A command line: its commands, its parser, and what every run of it has around it."""

from __future__ import annotations

import argparse
import logging
import os
import select
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
from contourdiff.limits import SettingError
from contourdiff.logs import LIBRARIES

EXIT_CODES = """exit status:
  0   all was done
  1   an input was refused, or a case failed (the others are done)
  2   the command line is wrong: a command, an option, a setting or its value
  130 interrupted (143: terminated); the same command goes on where it stopped
  141 what reads the output has closed it"""
PACKAGES = ("contourdiff", "contourdiff_lab")
QUIET = "print warnings and errors alone; default: off"
VERBOSE = "print all that the libraries log, too; default: off"
TRUST = "accept configs that are not of the installed bundle, by the digest that the error names; default: none"


@dataclass(eq=False)
class Program:
    """A program with subcommands.

    Args:
        name: what a user types.
        description: a line for its help.
        moved: commands that another program has now, name -> what to type instead.
        order: names of the commands that its help lists first; the others follow as they were registered.
    """

    name: str
    description: str
    moved: Mapping[str, str] = field(default_factory=dict)
    order: Sequence[str] = ()
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
        """Parse the command line and run; an error ends with one line, and a status of `EXIT_CODES`."""
        try:
            try:
                self._run(sys.argv[1:] if arguments is None else arguments)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:  # head has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(128 + signal.SIGPIPE) from None
        except KeyboardInterrupt as error:
            raise _interrupted([]) from error

    def _run(self, arguments: Sequence[str]) -> None:
        if arguments and arguments[0] in self.moved:
            sys.stderr.write(f"{self.name} {arguments[0]} is now: {self.moved[arguments[0]]}\n")
            raise SystemExit(2)
        values = vars(self.parser().parse_args(arguments))
        del values["print_completion"]
        run = self.commands[values.pop("command")].run
        verbose = values.pop("verbose")
        quiet = values.pop("quiet")
        accepted = values.pop("trust_config", None)
        received: list[int] = []
        try:
            with _logging(verbose, quiet), logging_redirect_tqdm(), _one_signal(received):
                _check_trust(values, accepted)
                run(**values)
        except KeyboardInterrupt as error:
            raise _interrupted(received) from error
        except Exception as error:
            if received:  # some library made another error of the interrupt
                raise _interrupted(received) from error
            if isinstance(error, BrokenPipeError) and _output_is_closed():
                raise
            if not isinstance(error, (ValueError, OSError, ImportError)):
                raise
            logging.getLogger(__name__).debug("traceback of the error below", exc_info=error)
            status = 2 if isinstance(error, SettingError) else 1
            raise _exit(f"error: {error}", status) from error

    def parser(self) -> argparse.ArgumentParser:
        """Parser of all commands."""
        style = argparse.RawDescriptionHelpFormatter
        root = argparse.ArgumentParser(
            prog=self.name, description=self.description, epilog=EXIT_CODES, formatter_class=style
        )
        root.add_argument("--version", action="version", version=f"{self.name} {__version__}")
        shtab.add_argument_to(root, help="print the completion script of a shell")
        subparsers = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for name in self.ordered_names():
            command = self.commands[name]
            subparser = subparsers.add_parser(
                name,
                help=command.text,
                description=f"{command.text[0].upper()}{command.text[1:]}.",
                epilog=command.examples,
                formatter_class=style,
            )
            for argument_name, options in command.arguments:
                subparser.add_argument(argument_name, **options)
            if BUNDLE in command.arguments:
                subparser.add_argument("--trust-config", help=TRUST, metavar="SHA256")
            subparser.add_argument("--quiet", "-q", help=QUIET, action="store_true")
            subparser.add_argument("--verbose", "-v", help=VERBOSE, action="store_true")
        return root

    def ordered_names(self) -> list[str]:
        """Names of the commands as the help lists them."""
        first = [name for name in self.order if name in self.commands]
        return [*first, *(name for name in self.commands if name not in first)]


def _exit(line: str, status: int) -> SystemExit:
    """End of the program with a line on standard error."""
    sys.stderr.write(f"{line}\n")
    end = SystemExit(line)
    end.code = status
    return end


def _output_is_closed() -> bool:
    """Whether nothing reads standard output any more; a broken pipe may also be a connection."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors are always reported
    return bool(poll.poll(0))


def _interrupted(received: Sequence[int]) -> SystemExit:
    number = received[0] if received else signal.SIGINT
    return _exit("interrupted", 128 + number)


def _check_trust(values: Mapping[str, Any], accepted: str | None) -> None:
    """Refuse other configs than those of the installed bundle and the accepted."""
    bundle = values.get("bundle")
    overlays = values.get("overlays") or ()
    if bundle is not None or any(name.endswith(".json") for name in overlays):
        from contourdiff.cli.trust import check_trust

        check_trust(bundle, overlays, accepted)


@contextmanager
def _one_signal(received: list[int]) -> Iterator[None]:
    """Let Ctrl-C or SIGTERM unwind the run, so that no half-written file stays; further ones are ignored.

    Its number is appended to ``received``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        if not received:
            received.append(number)
            raise KeyboardInterrupt

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_IGN if received else handler)


@contextmanager
def _logging(verbose: bool, quiet: bool) -> Iterator[None]:
    """Short lines on standard error; with ``verbose`` the libraries' lines and all details, too."""
    template = "%(asctime)s - %(name)s - %(levelname)s - %(message)s" if verbose else "%(message)s"
    logging.basicConfig(format=template, stream=sys.stderr)
    if verbose:
        package_level, library_level = logging.DEBUG, logging.INFO
    elif quiet:
        package_level, library_level = logging.WARNING, logging.ERROR
    else:
        package_level, library_level = logging.INFO, logging.ERROR
    levels = {
        **dict.fromkeys(LIBRARIES, library_level),
        **dict.fromkeys(PACKAGES, package_level),
    }
    if not verbose:
        levels["ignite"] = logging.CRITICAL  # it logs an interruption as an error
    levels_before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    with warnings.catch_warnings():
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            for name, level in levels_before.items():
                logging.getLogger(name).setLevel(level)


IN_THE_LAB = ("agreement", "gap", "quality", "steps", "table")
PROGRAM = Program(
    "contourdiff",
    "Translate labelled CT into MR.",
    moved={
        **{name: f"contourdiff-lab {name}" for name in IN_THE_LAB},
        "rival": "contourdiff-lab baseline",
    },
    order=(
        *("example", "translate", "train", "report"),
        *("transfer", "segment", "pairs"),
        *("info", "settings", "phantom", "curve"),
        *("export", "export-bundle", "to-nnunet", "convert"),
    ),
)
