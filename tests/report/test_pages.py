# SPDX-License-Identifier: Apache-2.0
"""Pages are well-formed, need nothing from elsewhere, and show what users named as text."""

from __future__ import annotations

import json
import runpy
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from contourdiff.report import run_report, write_markdown_page, write_report
from contourdiff.report.cases import read_cohort
from contourdiff.report.pages import ASSETS, VIEWER, VIEWER_VERSION, write_index
from contourdiff.weights import sha256_of
from helpers.paths import REPOSITORY
from helpers.runs import large_cohort, run_tiny_inference
from helpers.volumes import HOSTILE_NAME, make_dataset

VIEWER_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
"""Of niivue.umd.js in the npm package @niivue/niivue 0.69.0."""
VOID = {"meta", "link", "img", "input", "br", "hr"}
ADDRESSES = ("href", "src", "xlink:href", "action", "srcset", "data")


class Page(HTMLParser):
    """Elements of a page, whose tags must be balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(dict(attributes)) == len(attributes)
        self.elements.append(
            (
                tag,
                {name: value or "" for name, value in attributes} | {"within": " ".join(self.open)},
            )
        )
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def pages_of(folder: Path) -> dict[Path, Page]:
    return {
        path: Page(path)
        for path in (folder / "index.html", *sorted((folder / "report").glob("*.html")))
    }


def test_pages_are_well_formed_and_complete(reported: Path) -> None:
    pages = pages_of(reported)
    assert [path.stem for path in pages] == ["index", HOSTILE_NAME, "a", "broken"]
    for page in pages.values():
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert all(image["alt"] for image in page.all("img"))
        assert all(
            "label" in control["within"].split()
            for name in ("input", "select")
            for control in page.all(name)
        )


def test_pages_use_nothing_from_elsewhere_and_every_link_leads_somewhere(reported: Path) -> None:
    for path, page in pages_of(reported).items():
        for tag, attributes in page.elements:
            for target in (attributes[name] for name in ADDRESSES if name in attributes):
                if target.startswith("https://"):
                    assert (tag, attributes["within"].split()[-2:]) == (
                        "a",
                        ["ol", "li"],
                    )  # of the references
                elif not target.startswith(("#", "data:,")):
                    assert (path.parent / unquote(target.partition("#")[0])).is_file(), target
        assert len(page.all("style")) == 1
        assert "url(" not in (ASSETS / "style.css").read_text()


def test_names_of_cases_are_shown_as_text(reported: Path) -> None:
    pages = pages_of(reported)
    own = {"index": 1, "a": 2, HOSTILE_NAME: 2, "broken": 0}
    for path, page in pages.items():
        assert len(page.all("script")) == own[path.stem]
        assert not page.all("b") or path.stem == "index"
        assert all(
            not name.startswith("on") for _, attributes in page.elements for name in attributes
        )
    index = pages[reported / "index.html"]
    assert all("header" in bold["within"] for bold in index.all("b"))
    assert HOSTILE_NAME in index.text
    assert HOSTILE_NAME in [card.get("data-name") for card in index.all("li")]


def test_messages_of_failures_are_shown_as_text(reported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(reported, tmp_path / "mr")
    table = tmp_path / "cases.csv"
    table.write_text("case,status,seconds,error\na,failed,,<script>alert(1)</script>\n")
    write_report(folder, stats=table, command="contourdiff report '<img src=x>'")
    index = Page(folder / "index.html")
    assert "<script>alert(1)</script>" in index.text
    assert "contourdiff report '<img src=x>'" in index.text
    assert len(index.all("script")) == 1


def test_the_report_shows_real_mr_and_the_ct(reported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(reported, tmp_path / "mr")
    shutil.rmtree(folder / "report")
    assert "&#34;ct&#34;" not in (write_report(folder).parent / "report" / "a.html").read_text()
    write_report(folder, ct_dir=reported.parent / "ct", mr_dir=reported.parent / "ct" / "labels")
    page = (folder / "report" / "a.html").read_text()
    assert "real MR" in page
    assert '"url": "ct/a.nii.gz"' in page
    assert (folder / "report" / "ct" / "a.nii.gz").read_bytes() == (
        reported.parent / "ct" / "a.nii.gz"
    ).read_bytes()
    with pytest.raises(ValueError, match="expected NIfTI files of real MR in"):
        write_report(folder, mr_dir=tmp_path)


def test_the_viewer_is_the_released_one(reported: Path) -> None:
    asset = ASSETS / VIEWER
    assert sha256_of(asset) == sha256_of(reported / "report" / VIEWER) == VIEWER_SHA256
    licence = (reported / "report" / "niivue.LICENSE.txt").read_text()
    assert f"NiiVue {VIEWER_VERSION}" in licence
    assert "BSD 2-Clause License" in licence


def test_the_methods_describe_how_the_mr_were_painted(reported: Path) -> None:
    """Contour, networks and selection, with the settings of the run; nothing of the code."""
    text = " ".join(Page(reported / "index.html").text.split())
    settings = json.loads((reported / "a_mr.json").read_text())["settings"]
    low, high = settings["window_hu"]
    assert f"Each CT was windowed to {low:.0f} to {high:.0f} HU" in text
    assert f"with {settings['num_inference_steps']} steps of DDIM [5]" in text
    assert "the one nearest to the translation of the neighboring slice was taken" in text
    assert "VolumeInferer" not in text


@pytest.mark.slow
def test_a_thousand_cases_are_one_small_page(reported: Path, tmp_path: Path) -> None:
    large_cohort(reported, tmp_path / "mr", 1000)
    index = write_index(read_cohort(tmp_path / "mr"), tmp_path / "mr")
    assert index.stat().st_size < 3_000_000
    assert len([card for card in Page(index).all("li") if "data-name" in card]) == 1000


def test_markdown_is_a_page_and_its_html_is_text(tmp_path: Path) -> None:
    text = (
        "# Rows & `more`\n\n| row | Dice |\n|---|---|\n| <b>x</b> | `a < 'b'` |\n\n![p](p.png)\n\n"
    )
    text += "```bash\necho '<i>'\n```\n"
    (tmp_path / "table.md").write_text(
        text + "\n<script>alert(1)</script>\n\n<div>\n\n- <img src=x>\n"
    )
    page = Page(write_markdown_page(tmp_path / "table.md"))
    assert [
        len(page.all(tag)) for tag in ("h1", "table", "img", "pre", "b", "i", "script", "div")
    ] == [1] * 4 + [0] * 4
    for shown in ("<b>x</b>", "a < 'b'", "echo '<i>'", "<script>alert(1)</script>", "<img src=x>"):
        assert shown in page.text
    assert "<title>Rows &amp; more</title>" in (tmp_path / "table.html").read_text()


@pytest.mark.parametrize("name", ["bundles/contourdiff_ct2mr/docs/README.md", "docs/results.md"])
def test_the_model_card_is_a_page(name: str, tmp_path: Path) -> None:
    """Every row and figure of the Markdown, whose links lead to files and to headings."""
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    shutil.copy(REPOSITORY / name, path)
    page, lines = Page(write_markdown_page(path)), path.read_text().splitlines()
    assert len(page.all("tr")) == sum(
        line.startswith("|") and not line.startswith("|---") for line in lines
    )
    assert len(page.all("img")) == sum(line.startswith("![") for line in lines) > 0
    ids = {attributes.get("id") for _, attributes in page.elements}
    for tag, attributes in page.elements:
        for target in (attributes[key] for key in ADDRESSES if key in attributes):
            if target.startswith("#"):
                assert target[1:] in ids, target
            elif not target.startswith(("https://", "data:,")):
                assert (
                    REPOSITORY / path.parent.relative_to(tmp_path) / target.partition("#")[0]
                ).is_file(), (
                    tag,
                    target,
                )


def test_real_mr_is_looked_for_before_the_run(tiny_weights: Path, tmp_path: Path) -> None:
    ct = make_dataset(tmp_path / "ct", ("a",))
    with pytest.raises(ValueError, match="expected NIfTI files of real MR in"):
        run_tiny_inference(ct, tmp_path / "mr", tiny_weights, report=True, mr_dir=str(tmp_path))
    assert not (tmp_path / "mr").exists()


def test_a_run_shows_real_mr_and_the_ct_of_its_datalist(reported: Path, tmp_path: Path) -> None:
    folder, ct = shutil.copytree(reported, tmp_path / "mr"), reported.parent / "ct"
    write = run_report(
        folder, ct_dir=tmp_path, datalist=[{"image": ct / "a.nii.gz"}], mr_dir=ct / "labels"
    )
    page = (write().parent / "report" / "a.html").read_text()
    assert "real MR" in page
    assert '"url": "ct/a.nii.gz"' in page
    assert "is not beside the translations" not in page
    assert (
        "is not beside the translations" in (folder / "report" / f"{HOSTILE_NAME}.html").read_text()
    )


@pytest.mark.slow
def test_the_command_on_a_page_can_be_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a package and of a file, as ``python`` starts them."""
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "__main__.py").write_text(
        "from contourdiff.report import command_line\nprint(command_line())"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", ["replaced", "a b"])
    runpy.run_module("tool", run_name="__main__", alter_sys=True)
    assert capsys.readouterr().out == "python -m tool 'a b'\n"
    runpy.run_path(str(tmp_path / "tool" / "__main__.py"), run_name="__main__")
    assert capsys.readouterr().out == "__main__.py 'a b'\n"
