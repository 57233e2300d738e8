# SPDX-License-Identifier: Apache-2.0
"""Find, read and run the bundle; the one place where an error becomes an exit status."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from contourdiff.config_checks import COMMENT, check_names, plain_errors, references
from contourdiff.data.atomic import write_json
from contourdiff.data.inputs import is_url
from contourdiff.inference.run import run_inference
from contourdiff.limits import SettingError
from contourdiff.phantom import write_phantom
from contourdiff.training import distributed
from contourdiff.training.handlers import newest_checkpoint

logger = logging.getLogger(__name__)
Kind = TypeVar("Kind")

BUNDLE_NAME = "contourdiff_ct2mr"
MLFLOW_ENTRIES = set(DEFAULT_MLFLOW_SETTINGS["configs"])  # type: ignore[call-overload]
RESERVED = {"bundle_root", "imports", "initialize", "run", "finalize"} | MLFLOW_ENTRIES
"""Entries with a meaning to MONAI, whether or not a config refers to them."""
WORKFLOW_ARGUMENTS = inspect.signature(ConfigWorkflow).parameters.keys() - {"override"}
SETTINGS_HEAD = "// settings"
FLAGS = {"true": True, "false": False}
PATHS = (
    "dataset_dir",
    "datalist",
    "output_dir",
    "ckpt_path",
    "refiner_path",
    "coarse_path",
    "stats",
    "bids_dir",
    "mr_dir",
    "resume_from",
    "initial_weights",
    "label_map",
    "test_dir",
)
RECORDED_COMPONENTS = ("network_def", "refiner_def", "scheduler", "contour")


def find_bundle(bundle: str | Path | None = None) -> Path:
    """Folder of the bundle: the given one, the installed one, or the repository's; ``FileNotFoundError`` if absent."""
    package = Path(__file__).resolve().parent
    if bundle is not None:
        root = Path(bundle)
    else:
        root = package.parents[1] / "bundles" / BUNDLE_NAME
        for place in (package / "bundles" / BUNDLE_NAME, package.parent):
            if (place / "configs").is_dir():
                root = place
                break
    if not (root / "configs" / "inference.json").is_file():
        raise FileNotFoundError(
            f"expected the bundle {BUNDLE_NAME} at {root}, found none; pass its folder as bundle"
        )
    return root


def config_files(
    bundle: str | Path | None = None, overlays: Sequence[str] = (), base: str = "inference"
) -> list[str]:
    """Paths of a config of the bundle and of its overlays, each by name, or any other overlay by its path ``*.json``.

    Raises:
        FileNotFoundError: if one is missing.
    """
    configs = find_bundle(bundle) / "configs"
    files = []
    for name in (base, *overlays):
        files.append(Path(name) if name.endswith(".json") else configs / f"{name}.json")
    missing = [file.stem for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"expected configs by name in {configs}, found no {missing}")
    return [str(file) for file in files]


def read_config(files: str | Sequence[str], settings: Mapping[str, Any]) -> ConfigParser:
    """Parser of a config with its overlays and with other settings; ``"network_def#channels"`` is inside an entry.

    ``bundle_root`` is the folder above the first file's, unless it is among the settings.

    Raises:
        ValueError: for a file that is no JSON; for a setting that the config does not have, with the nearest.
    """
    parser = ConfigParser()
    with _json_errors(files):
        parser.read_config(files)
    _apply_settings(parser, files, settings)
    return parser


def run_inference_config(
    dataset_dir: str | Path,
    output_dir: str | Path,
    *,
    bundle: str | Path | None = None,
    overlays: Sequence[str] = (),
    **settings: Any,
) -> Path:
    """Translate every CT of a folder: ``python -m monai.bundle run`` on ``inference.json``, as a function.

    Args:
        dataset_dir: folder of ``<case>.nii.gz`` with optional ``labels/<case>.nii.gz``.
        output_dir: folder of ``<case>_mr.nii.gz``, ``_label.nii.gz``, ``_mr.json`` and ``_mr.png``.
        bundle: folder of the bundle, see [`find_bundle`][].
        overlays: names or paths of overlays of ``inference.json``, in order, such as ``"fast"``.
        settings: settings of ``inference.json``, such as ``seed=1`` or ``ckpt_path="model.pt"``, and arguments of
            MONAI's ``ConfigWorkflow``, such as ``logging_file=False``.

    Returns:
        ``output_dir``.

    Raises:
        FileNotFoundError: for a missing bundle, overlay, weights or ``dataset_dir``.
        ValueError: for an unknown setting, bad weights, no case, or, after all others are done, a case that failed.
    """
    parser = inference_parser(dataset_dir, output_dir, bundle=bundle, overlays=overlays, **settings)
    with plain_errors():
        run_inference(parser)
    return Path(output_dir)


def inference_parser(
    dataset_dir: str | Path,
    output_dir: str | Path,
    *,
    bundle: str | Path | None = None,
    overlays: Sequence[str] = (),
    **settings: Any,
) -> ConfigParser:
    """Parser of ``inference.json``; arguments and errors as in [`run_inference_config`][]; nothing is created yet."""
    paths = {
        "dataset_dir": dataset_dir if is_url(dataset_dir) else Path(dataset_dir),
        "output_dir": Path(output_dir),
    }
    files = config_files(bundle, overlays)
    with plain_errors():
        return _workflow("inference", files, {**paths, **settings}).parser


def train(
    mr_dir: str | Path,
    output_dir: str | Path,
    *,
    bundle: str | Path | None = None,
    overlays: Sequence[str] = (),
    resume: bool = False,
    **settings: Any,
) -> Path:
    """Train a translator: ``python -m monai.bundle run`` on ``train.json``, as a function.

    Args:
        mr_dir: folder of MR images.
        output_dir: folder of ``model.pt``, checkpoints, pictures and the loss curve.
        bundle: folder of the bundle, see [`find_bundle`][].
        overlays: names or paths of overlays of ``train.json``, such as ``"train_refiner"``.
        resume: go on from the newest checkpoint in ``output_dir``.
        settings: settings of ``train.json``.

    Returns:
        Path of the weights.

    Raises:
        FileNotFoundError: for a missing bundle, overlay or folder, or no checkpoint to resume from.
        ValueError: for an unknown setting, bad weights or no images.
    """
    files = config_files(bundle, overlays, base="train")
    settings = {"dataset_dir": Path(mr_dir), "output_dir": Path(output_dir), **settings}
    if resume:
        checkpoint = newest_checkpoint(output_dir)
        if checkpoint is None:
            raise FileNotFoundError(
                f"expected a checkpoint in {output_dir}, found none; start without --resume"
            )
        settings["resume_from"] = str(checkpoint)
    run_config("train", files, settings)
    return Path(output_dir) / "model.pt"


def run_config(kind: str, files: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Run a config of any bundle, with its overlays; ``kind`` is MONAI's: ``"train"`` or ``"inference"``.

    Errors are those of its components, and of [`read_config`][].
    """
    with plain_errors():
        workflow = _workflow(kind, files, settings)
        workflow.run()
        workflow.finalize()


def _workflow(kind: str, files: Sequence[str], settings: Mapping[str, Any]) -> ConfigWorkflow:
    """MONAI's workflow, initialized; settings may be its arguments, too."""
    arguments: dict[str, Any] = {"logging_file": False, "workflow_type": kind}
    entries = {}
    for name, value in settings.items():
        if name in WORKFLOW_ARGUMENTS:
            arguments[name] = value
        else:
            entries[name] = value
    monai_logger = logging.getLogger(ConfigWorkflow.__module__)
    level = monai_logger.level
    monai_logger.setLevel(logging.ERROR)  # it remarks that no logging is configured
    try:
        with _json_errors(files):
            workflow = ConfigWorkflow(files, **arguments)
    finally:
        monai_logger.setLevel(level)
    _apply_settings(workflow.parser, files, entries)
    workflow.initialize()
    return workflow


def _apply_settings(
    parser: ConfigParser, files: str | Sequence[str], settings: Mapping[str, Any]
) -> None:
    check_names(settings, parser.get().keys())
    first = files if isinstance(files, str) else files[0]
    root = Path(first).resolve().parents[1]
    entries: dict[str, Any] = {"bundle_root": str(root)}
    if "#" in str(root):
        entries["bundle_root"] = {"_target_": "str", "object": root}
    for name, value in settings.items():
        entries[name] = _literal(name, value)
    parser.update(entries)


def _literal(name: str, value: Any) -> Any:
    """A value as it is meant: ``true`` and ``false`` in any case are flags, and ``#`` in a path is no reference.

    The value itself if nothing is to be changed. Raises ``ValueError`` for ``#`` in another text.
    """
    if isinstance(value, dict):
        literal = {key: _literal(key, item) for key, item in value.items()}
        return value if all(literal[key] is item for key, item in value.items()) else literal
    if not _is_plain_text(name, value):
        return value
    if "#" not in value:
        return FLAGS.get(value.lower(), value)
    if name in PATHS and not is_url(value):
        return Path(value)  # MONAI looks for references in texts
    raise SettingError(f"expected no # in {name}, got {value!r}, a reference to MONAI; rename it")


def _is_plain_text(name: str, value: Any) -> bool:
    """Whether an entry is a text that MONAI does not evaluate."""
    is_comment = name.startswith(("_", COMMENT))
    return isinstance(value, str) and not is_comment and not value.startswith(("$", "@", "%"))


@contextmanager
def _json_errors(files: str | Sequence[str]) -> Iterator[None]:
    """Name the file that is no JSON."""
    try:
        yield
    except ValueError:
        for file in [files] if isinstance(files, str) else files:
            try:
                ConfigParser.load_config_file(file)
            except ValueError as error:
                raise ValueError(
                    f"expected JSON in the config {file}, got: {error}; repair it"
                ) from error
        raise


def run_example(folder: str | Path, bundle: str | Path | None = None) -> Path:
    """Make the digital lumbar phantom in ``<folder>/ct`` and translate it, as a draft, to ``<folder>/mr``."""
    ct = Path(folder) / "ct"
    write_phantom(ct)
    return run_inference_config(
        ct, Path(folder) / "mr", bundle=bundle, overlays=("draft",), overwrite=True
    )


def run_translation() -> None:
    """``run`` of ``inference.json``: validate settings, weights, output folder and cases, translate, log a summary.

    Uses the config that calls it, see [`contourdiff.inference.run.run_inference`][]. Raises ``SystemExit`` with one
    line, and status 1, if nothing can be translated or a case failed.
    """
    with _exit_status():
        parser = _caller(ConfigParser)
        _check_settings(parser)
        run_inference(parser)


def check_settings() -> None:
    """Step of a config's ``run``: end the program with one line if the calling config does not have a setting."""
    with _exit_status():
        _check_settings(_caller(ConfigParser))


def join_processes(device: Any) -> None:
    """Step of a training's ``run``: join those that torchrun started, or end the program with one line."""
    with _exit_status():
        distributed.join_processes(device)


def write_settings(output_dir: str | Path) -> None:
    """Step of a training's ``run``: write the settings to ``<output_dir>/settings.json``."""
    write_json(Path(output_dir) / "settings.json", settings_section())


def settings_section() -> dict[str, Any]:
    """Settings of the calling config, for the record: all entries of sections whose comment starts with "// settings".

    The same holds for ``"// settings of ..."`` of an overlay. ``network_def``, ``refiner_def`` of a cascade,
    ``scheduler`` and ``contour`` are added. Expressions are evaluated; a device becomes its name.
    """
    parser = _caller(ConfigParser)
    section = {}
    head = ""
    for name in parser.get():
        if name.startswith(COMMENT):
            head = name
        elif head.startswith(SETTINGS_HEAD):
            section[name] = parser.get_parsed_content(name)
    for name in RECORDED_COMPONENTS:
        entry = parser.get(name)
        if entry:
            section[name] = {key: parser.get_parsed_content(f"{name}::{key}") for key in entry}
    return dict(json.loads(json.dumps(section, default=str)))


def bundle_root() -> str:
    """Folder of the bundle whose config is being parsed, ``"."`` outside a workflow; ``--bundle_root`` overrides it.

    A config cannot name its own folder, but the ``ConfigWorkflow`` that evaluates it knows, and is among the callers.
    """
    try:
        return str(_caller(ConfigWorkflow).config_root_path.resolve().parent)
    except LookupError:
        return "."


def _check_settings(parser: ConfigParser) -> None:
    """Compare the top-level entries with what the config refers to, and with the bundle's configs that it contains.

    ``monai.bundle run`` leaves flags as texts, which are replaced before, and has replaced ``#``.
    """
    config = parser.get()
    changed = {}
    for name, value in config.items():
        if _is_plain_text(name, value) and "::" in value.rpartition("://")[2]:
            raise SettingError(
                f"expected {name} without #, which MONAI has turned into ::, got {value!r}; rename it, give a link to "
                "it, or use the program contourdiff, which takes any name"
            )
        literal = _literal(name, value)
        if literal is not value:
            changed[name] = literal
    if changed:
        parser.update(changed)
        parser.parse()
    known = set(RESERVED)
    for reference in references(config):
        known.add(ReferenceResolver.split_id(reference)[0])
    for file in (Path(parser.get_parsed_content("bundle_root")) / "configs").glob("*.json"):
        entries = ConfigParser.load_config_file(file).keys()
        if "run" in entries and entries <= config.keys():
            known |= entries
    check_names(config, known)


def _caller(kind: type[Kind]) -> Kind:
    """Nearest object of a class whose method is among the callers: MONAI passes a component no parser."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, kind):
            return owner
        frame = frame.f_back
    raise LookupError(
        f"expected a {kind.__name__} among the callers, found none; call this from a config"
    )


@contextmanager
def _exit_status() -> Iterator[None]:
    """End the program with one line, and status 1, for an error of the input."""
    try:
        with plain_errors():
            yield
    except (ValueError, OSError, ImportError) as error:
        logger.debug("traceback of the error below", exc_info=error)
        raise SystemExit(f"error: {error}") from error
