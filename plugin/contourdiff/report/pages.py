# SPDX-License-Identifier: Apache-2.0
"""Write the pages of a report from templates."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import sys
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
from contourdiff.data.atomic import copy_file, link_file, write_text
from contourdiff.data.nifti_names import nifti_by_case
from contourdiff.inference.summary import read_run
from contourdiff.report import plots
from contourdiff.report.cases import Case, ct_files, read_cohort, read_rows, shared_values

ASSETS = Path(__file__).with_name("assets")
VIEWER, VIEWER_VERSION = "niivue.umd.js", "0.69.0"
FOLDER = "report"
"""Folder of the cases' pages and of what they need, in the folder of translations."""
LABELS = {
    "fidelity": "contour fidelity, median over the slices",
    "flicker": "flicker, gray levels²",
    "mean": "mean gray level",
    "seconds": "time, s",
}
METHODS = (
    *(
        "window_hu",
        "spacing_mm",
        "num_inference_steps",
        "num_refinement_steps",
        "solver",
        "candidates",
        "max_rounds",
    ),
    *("distance_threshold", "mean_threshold", "fidelity_limit", "fidelity_tolerance_mm"),
)
"""Settings in the methods paragraph that are those of all cases."""


def write_report(
    output_dir: str | Path,
    *,
    ct_dir: str | Path | None = None,
    datalist: Any = None,
    mr_dir: str | Path | None = None,
    stats: str | Path | None = None,
    command: str | None = None,
) -> Path:
    """Write ``index.html`` into a folder of translations, and a page for each case into its folder ``report``.

    Nothing on the pages comes from elsewhere. The index is written last.

    Args:
        output_dir: folder of ``<case>_mr.json`` and what else a run writes, or a BIDS derivative dataset.
        ct_dir: the CT that were translated, ``<case>.nii.gz`` or a BIDS dataset, for the viewer: they are linked or
            copied to ``report/ct``. ``None`` shows those in ``<output_dir>/ct``, if there are any, and of a derivative
            dataset in ``derivatives`` those of the dataset around it.
        datalist: the CT in ``ct_dir`` as [`contourdiff.data.translation_cases.TranslationCases`][] takes them.
        mr_dir: real MR (NIfTI), or a folder with them in ``images``, whose gray levels are drawn beside.
        stats: table of ``contourdiff translate --stats`` (CSV), for times and failed cases; ``None`` takes those that
            the runs left in ``<output_dir>/run.json``.
        command: what wrote the report, to be shown.

    Returns the path of the index. Raises ``FileNotFoundError`` or ``ValueError`` if something is missing.
    """
    output_dir, pages = Path(output_dir), Path(output_dir) / FOLDER
    env, cases = (
        _environment(),
        read_cohort(output_dir, None if stats is None else read_rows(stats)),
    )
    cts = ct_files(cases, output_dir, ct_dir, datalist)
    real = None if mr_dir is None else plots.real_histogram(real_mr(mr_dir))
    pages.mkdir(exist_ok=True)
    for asset in (VIEWER, "niivue.LICENSE.txt"):
        copy_file(ASSETS / asset, pages / asset)
    links = [quote(f"{case.name}.html") for case in cases]
    for case, before, after in zip(cases, [None, *links], [*links[1:], None], strict=False):
        ct = _within(cts[case.name], case.name, pages) if case.name in cts else None
        page = _case_page(case, ct, real, pages) | {
            "before": before,
            "after": after,
            "folder": _shown(output_dir),
        }
        write_text(pages / f"{case.name}.html", env.get_template("case.html").render(page))
    return write_index(cases, output_dir, command)


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
    start = (
        [Path(sys.argv[0]).name]
        if spec is None
        else ["python", "-m", spec.name.removesuffix(".__main__")]
    )
    return shlex.join([*start, *sys.argv[1:]])


def write_index(cases: Sequence[Case], output_dir: str | Path, command: str | None = None) -> Path:
    """Write ``index.html``, the page of a cohort with at least one case, see [`write_report`][]; returns its path."""
    links = [quote(f"{case.name}.html") for case in cases]
    page = _index_page(cases, links) | {"folder": _shown(output_dir), "command": command}
    page["finished"] = read_run(output_dir).get("finished")
    write_text(
        Path(output_dir) / "index.html", _environment().get_template("index.html").render(page)
    )
    return Path(output_dir) / "index.html"


def write_markdown_page(path: str | Path) -> Path:
    """Write a Markdown file, such as a table or a model card, as a page beside it; returns the page's path.

    HTML in the file is shown as text. Raises ``ImportError`` without Markdown, ``OSError`` for no such file.
    """
    from markdown import Markdown

    path, converter = Path(path), Markdown(extensions=["tables", "fenced_code", "toc"])
    converter.preprocessors.deregister("html_block")
    converter.inlinePatterns.deregister("html")
    body = Markup(converter.convert(path.read_text(encoding="utf-8")))
    title = unescape(converter.toc_tokens[0]["name"]) if converter.toc_tokens else path.stem  # type: ignore[attr-defined]
    write_text(
        path.with_suffix(".html"),
        _environment().get_template("markdown.html").render(body=body, title=title),
    )
    return path.with_suffix(".html")


def _environment() -> Environment:
    """Templates that escape all text."""

    def asset(name: str) -> Markup:
        return Markup((ASSETS / name).read_text(encoding="utf-8"))

    def digest(name: str) -> str:
        return base64.b64encode(hashlib.sha256(asset(name).encode()).digest()).decode()

    env = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals |= {
        "asset": asset,
        "digest": digest,
        "version": __version__,
        "viewer_version": VIEWER_VERSION,
    }
    env.globals["written"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    env.filters |= {"url": quote, "figure": _figure}
    return env


def _shown(folder: str | Path) -> str:
    """A folder as an argument of a command."""
    return shlex.quote(str(folder))


def _figure(value: Any, digits: int = 2) -> str:
    """A number for people, a dash where there is none."""
    return f"{value:,.{digits}f}" if isinstance(value, (int, float)) else "\N{EN DASH}"


def real_mr(mr_dir: str | Path) -> list[Path]:
    """Real MR (NIfTI) of a folder, or of its folder ``images``; ``ValueError`` if there is none."""
    images = Path(mr_dir) / "images"
    found = list(nifti_by_case(images if images.is_dir() else Path(mr_dir)).values())
    if not found:
        raise ValueError(
            f"expected NIfTI files of real MR in {mr_dir}, found none; pass another folder"
        )
    return found


def _within(ct: Path, name: str, pages: Path) -> Path:
    """A CT in the folder of translations: where it is, or linked, else copied, to ``report/ct``."""
    if ct.resolve().is_relative_to(pages.parent.resolve()):
        return ct
    target = (
        pages
        / "ct"
        / f"{name}{''.join(ct.suffixes[-2:] if ct.name.endswith('.gz') else ct.suffixes[-1:])}"
    )
    link_file(ct, target)
    return target


def _case_page(case: Case, ct: Path | None, real: Any, pages: Path) -> dict[str, Any]:
    centers = {
        item["slice"]: item["center_mm"]
        for item in case.record.get("slices", [])
        if "center_mm" in item
    }
    layers = [
        {"name": layer.name, "kind": layer.kind, "url": quote(os.path.relpath(layer.path, pages))}
        for layer in case.layers(ct)
    ]
    drawn: list[tuple[str, Any]] = []
    if case.slices:
        drawn = [
            ("Contour fidelity of each slice", plots.fidelity_by_slice(case)),
            (
                "Distance of each slice to its neighbor, and rounds drawn",
                plots.neighbor_distances(case),
            ),
            ("Gray levels of the translation", plots.gray_levels(case, real)),
        ]
    viewer = {
        "layers": layers,
        "centers": centers,
        "window": (case.record.get("settings") or {}).get("window_hu"),
    }
    return {"case": case, "ct": ct, "layers": layers, "viewer": viewer, "plots": drawn}


def _index_page(cases: Sequence[Case], links: Sequence[str]) -> dict[str, Any]:
    measures = [case.measures for case in cases]
    distributions = {}
    for name, label in LABELS.items():
        if values := [value for item in measures if (value := item[name]) is not None]:
            distributions[name] = plots.distribution(name, values, label)
    settings = shared_values(cases, "settings")
    described = next((case.record for case in cases if case.record), {})
    return {
        "cards": list(zip(cases, measures, [f"{FOLDER}/{link}" for link in links], strict=True)),
        "distributions": distributions,
        "frame": plots.FRAME,
        "totals": _totals(cases),
        "weights": [
            json.loads(text)
            for text in dict.fromkeys(
                json.dumps(case.record["weights"]) for case in cases if case.record
            )
        ],
        "settings": settings,
        "packages": shared_values(cases, "packages"),
        "record": described,
        "with_record": sum(bool(case.record) for case in cases),
        "ct_count": len({case.record["case"] for case in cases if case.record}),
        "differing": [name for name in METHODS if len(settings.get(name, [])) > 1],
    }


def _totals(cases: Sequence[Case]) -> Mapping[str, Any]:
    seconds = [case.seconds for case in cases if case.seconds is not None]
    return {
        **{
            status: sum(case.status == status for case in cases)
            for status in ("translated", "kept", "failed")
        },
        "slices": sum(len(case.slices) for case in cases),
        "suspects": sum(len(case.suspects) for case in cases),
        "suspect cases": sum(bool(case.suspects) for case in cases),
        "seconds": sum(seconds) if seconds else None,
    }
