# SPDX-License-Identifier: Apache-2.0
"""Write the pages of a report from templates."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup

from contourdiff import __version__
from contourdiff.data.atomic import copy_file, link_file, read_json, write_text
from contourdiff.data.nifti_names import case_of, nifti_by_case
from contourdiff.inference.summary import read_run
from contourdiff.report import plots
from contourdiff.report.cases import Case, ct_files, read_cohort, read_rows, shared_values

ASSETS = Path(__file__).with_name("assets")
VIEWER = "niivue.umd.js"
VIEWER_VERSION = "0.69.0"
FOLDER = "report"
"""Folder of the cases' pages and of what they need, in the folder of translations."""
WORDS = {
    "contour fidelity": "How well the edges of the MR agree with the contour that it was painted from: the harmonic "
    "mean of precision and recall within the tolerance, 0 to 1. The contour of another patient gives about 0.3.",
    "invented": "Share of the edges in the MR that have no contour of the CT near them.",
    "lost": "Share of the CT's contour that has no edge of the MR near it.",
    "suspect": "A slice whose contour fidelity is below the limit: look at it before you use it.",
    "flicker": "Mean squared difference of adjacent slices, in gray levels squared. Small is smooth.",
    "accepted": "Share of the slices with a candidate near enough to the neighboring slice. The others have the best "
    "candidate that was drawn.",
    "mean": "Mean gray level of the slices, 0 to 255.",
    "distance": "Mean squared difference to the neighboring slice, in gray levels squared.",
    "rounds": "How often candidates were drawn for the slice.",
    "choice": "Why this candidate was taken.",
    "network calls": "Batches of candidates that went through the networks.",
    "kept": "A translation of an earlier run, which this one left as it is.",
}
"""What the words of the pages mean."""
LABELS = {
    "fidelity": "contour fidelity, median over the slices",
    "flicker": "flicker, gray levels²",
    "mean": "mean gray level",
    "seconds": "time, s",
}


def write_report(
    output_dir: str | Path,
    *,
    ct_dir: str | Path | None = None,
    datalist: Any = None,
    mr_dir: str | Path | None = None,
    stats: str | Path | None = None,
    label_names: str | Path | None = None,
    command: str | None = None,
) -> Path:
    """Write ``index.html`` into a folder of translations, and a page for each case into its folder ``report``.

    Nothing on the pages comes from elsewhere. The index is written last.

    Args:
        output_dir: folder of ``<case>_mr.json`` and what else a run writes, or a BIDS derivative dataset.
        ct_dir: the CT that were translated, see [`contourdiff.report.cases.ct_files`][], for the viewer: they are
            linked or copied to ``report/ct``.
        datalist: the CT in ``ct_dir`` as [`contourdiff.data.translation_cases.TranslationCases`][] takes them.
        mr_dir: real MR (NIfTI), or a folder with them in ``images``, whose gray levels are drawn beside.
        stats: table of ``contourdiff translate --stats`` (CSV), for times and failed cases; ``None`` takes those that
            the runs left in ``<output_dir>/run.json``.
        label_names: JSON file, ``{"28": "L4"}``: names of label values, where no record has them.
        command: what wrote the report, to be shown.

    Returns the path of the index. Raises ``FileNotFoundError`` or ``ValueError`` if something is missing.
    """
    pages = Path(output_dir) / FOLDER
    rows = None if stats is None else read_rows(stats)
    cases = read_cohort(output_dir, rows)
    cts = ct_files(cases, output_dir, ct_dir, datalist)
    real = None if mr_dir is None else plots.real_histogram(real_mr(mr_dir))
    names = {} if label_names is None else read_label_names(label_names)
    pages.mkdir(exist_ok=True)
    for asset in (VIEWER, "niivue.LICENSE.txt"):
        copy_file(ASSETS / asset, pages / asset)
    template = _environment().get_template("case.html")
    links: list[str | None] = [_link(case) for case in cases]
    links = [None, *links, None]
    for number, case in enumerate(cases):
        ct = cts.get(case.name)
        if ct is not None:
            ct = _within(ct, case.name, pages)
        page = template.render(
            _case_page(case, ct, real, pages, names),
            before=links[number],
            after=links[number + 2],
            folder=shlex.quote(str(output_dir)),
        )
        write_text(pages / f"{case.name}.html", page)
    return write_index(cases, output_dir, command)


def read_label_names(path: str | Path) -> dict[str, str]:
    """Names by label value of a JSON file, or of the entry ``classes`` in it; ``ValueError`` for another content."""
    content = read_json(path)
    names = content.get("classes", content) if isinstance(content, dict) else content
    is_names = isinstance(names, dict) and all(value.isdigit() for value in names)
    if not is_names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(
            f'expected the name of each label value in {path}, such as {{"28": "L4"}}, got another content; correct it'
        )
    return dict(names)


def _link(case: Case) -> str:
    return quote(f"{case.name}.html")


def run_report(
    output_dir: str | Path, *, mr_dir: str | Path | None = None, **options: Any
) -> Callable[[], Path]:
    """What writes the report at the end of a run: [`write_report`][] with these arguments and the command.

    Raises ``ValueError`` if there is no real MR in ``mr_dir``, before the run.
    """
    if mr_dir is not None:
        real_mr(mr_dir)
    return partial(write_report, output_dir, mr_dir=mr_dir, command=command_line(), **options)


def command_line() -> str:
    """The command that started this program, to be copied."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    start = [Path(sys.argv[0]).name]
    if spec is not None:
        start = ["python", "-m", spec.name.removesuffix(".__main__")]
    return shlex.join([*start, *sys.argv[1:]])


def write_index(cases: Sequence[Case], output_dir: str | Path, command: str | None = None) -> Path:
    """Write ``index.html``, the page of a cohort with at least one case, see [`write_report`][]; returns its path."""
    path = Path(output_dir) / "index.html"
    template = _environment().get_template("index.html")
    page = template.render(
        _index_page(cases),
        folder=shlex.quote(str(output_dir)),
        command=command,
        finished=read_run(output_dir).get("finished"),
        notes=read_run(output_dir).get("warnings", []),
    )
    write_text(path, page)
    return path


def write_markdown_page(path: str | Path) -> Path:
    """Write a Markdown file, such as a table or a model card, as a page beside it; returns the page's path.

    HTML in the file is shown as text. Raises ``ImportError`` without Markdown, ``OSError`` for no such file.
    """
    from markdown import Markdown

    path = Path(path)
    converter: Any = Markdown(extensions=["tables", "fenced_code", "toc"])
    converter.preprocessors.deregister("html_block")
    converter.inlinePatterns.deregister("html")
    body = Markup(converter.convert(path.read_text(encoding="utf-8")))
    title = path.stem
    if converter.toc_tokens:
        title = unescape(converter.toc_tokens[0]["name"])
    template = _environment().get_template("markdown.html")
    page = path.with_suffix(".html")
    write_text(page, template.render(body=body, title=title))
    return page


def _environment() -> Environment:
    """Templates that escape all text."""

    def asset(name: str) -> Markup:
        return Markup((ASSETS / name).read_text(encoding="utf-8"))

    def digest(name: str) -> str:
        sha256 = hashlib.sha256(asset(name).encode())
        return base64.b64encode(sha256.digest()).decode()

    env = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals.update(
        asset=asset,
        digest=digest,
        words=WORDS,
        version=__version__,
        viewer_version=VIEWER_VERSION,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    env.filters.update(url=quote, figure=_figure)
    return env


def _figure(value: Any, digits: int = 2) -> str:
    """A number for people, a dash where there is none."""
    if not isinstance(value, (int, float)):
        return "\N{EN DASH}"
    return f"{value:,.{digits}f}"


def real_mr(mr_dir: str | Path) -> list[Path]:
    """Real MR (NIfTI) of a folder, or of its folder ``images``; ``ValueError`` if there is none."""
    folder = Path(mr_dir)
    if (folder / "images").is_dir():
        folder = folder / "images"
    files = list(nifti_by_case(folder).values())
    if not files:
        raise ValueError(
            f"expected NIfTI files of real MR in {mr_dir}, found none; pass another folder"
        )
    return files


def _within(ct: Path, name: str, pages: Path) -> Path:
    """A CT in the folder of translations: where it is, or linked, else copied, to ``report/ct``."""
    if ct.resolve().is_relative_to(pages.parent.resolve()):
        return ct
    suffix = ct.name.removeprefix(case_of(ct))
    target = pages / "ct" / f"{name}{suffix}"
    link_file(ct, target)
    return target


def _case_page(
    case: Case, ct: Path | None, real: Any, pages: Path, label_names: Mapping[str, str]
) -> dict[str, Any]:
    centers = {}
    for item in case.record.get("slices", []):
        if "center_mm" in item:
            centers[item["slice"]] = item["center_mm"]
    layers = []
    files = {}
    for layer in case.layers(ct):
        url = quote(os.path.relpath(layer.path, pages))
        layers.append({"name": layer.name, "kind": layer.kind, "url": url})
        files[layer.name] = {"url": url, "path": str(layer.path), "kind": layer.kind}
    for name, path in (("record", case.record_file), ("picture", case.picture)):
        if path is not None:
            files[name] = {"url": quote(os.path.relpath(path, pages)), "path": str(path)}
    figures: dict[str, Markup] = {}
    if case.slices:
        figures = {
            "Contour fidelity of each slice": plots.fidelity_by_slice(case),
            "Distance of each slice to its neighbor, and rounds drawn": plots.neighbor_distances(
                case
            ),
            "Gray levels of the translation": plots.gray_levels(case, real),
        }
    window = case.settings.get("window_hu")
    return {
        "case": case,
        "ct": ct,
        "layers": layers,
        "files": files,
        "viewer": {
            "layers": layers,
            "centers": centers,
            "window": window,
            "classes": case.record.get("classes") or label_names,
        },
        "plots": list(figures.items()),
    }


def _index_page(cases: Sequence[Case]) -> dict[str, Any]:
    records = [case.record for case in cases if case.record]
    cards = [(case, case.measures, f"{FOLDER}/{_link(case)}") for case in cases]
    distributions = {}
    for name, label in LABELS.items():
        values = [measures[name] for _, measures, _ in cards if measures[name] is not None]
        if values:
            distributions[name] = plots.distribution(name, values, label)
    weights = []
    for record in records:
        if record["weights"] not in weights:
            weights.append(record["weights"])
    settings = shared_values(cases, "settings")
    return {
        "cards": cards,
        "distributions": distributions,
        "frame": plots.FRAME,
        "totals": _totals(cases),
        "weights": weights,
        "settings": settings,
        "packages": shared_values(cases, "packages"),
        "record": records[0] if records else {},
        "with_record": len(records),
        "ct_count": len({record["case"] for record in records}),
        "varied": [name for name, values in settings.items() if len(values) > 1],
    }


def _totals(cases: Sequence[Case]) -> Mapping[str, Any]:
    statuses = Counter(case.status for case in cases)
    suspects = [len(case.suspects) for case in cases]
    seconds = [case.seconds for case in cases if case.seconds is not None]
    return {
        "translated": statuses["translated"],
        "kept": statuses["kept"],
        "failed": statuses["failed"],
        "slices": sum(len(case.slices) for case in cases),
        "suspects": sum(suspects),
        "suspect cases": len(cases) - suspects.count(0),
        "seconds": sum(seconds) if seconds else None,
    }
