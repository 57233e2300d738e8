# SPDX-License-Identifier: Apache-2.0
"""In a browser the report is without error, nothing leaves this machine, and the viewer shows all layers."""

from __future__ import annotations

import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest
from PIL import Image

from contourdiff.data.bids import write_derivatives
from contourdiff.report import write_report
from contourdiff.report.cases import read_cohort
from contourdiff.report.pages import write_index, write_markdown_page
from contourdiff.report.server import server_of
from helpers.paths import REPOSITORY
from helpers.runs import large_cohort
from helpers.volumes import HOSTILE_NAME

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
NAMES = [HOSTILE_NAME, "a", "broken"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with server_of(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def address(reported: Path) -> Iterator[str]:
    with served(reported) as started:
        yield started


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page whose messages, errors and requests are checked as it is closed."""
    opened = browser.new_page(viewport={"width": 800, "height": 600})
    messages: list[str] = []
    requests: list[str] = []
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda request: requests.append(request.url))
    yield opened
    opened.close()
    assert messages == []
    assert requests
    for url in map(urlsplit, requests):
        assert url.scheme in ("file", "data", "blob") or url.hostname == "127.0.0.1"


def shown(page: Any) -> list[str]:
    return [
        card.get_attribute("data-name") for card in page.locator(".card").all() if card.is_visible()
    ]


def pixels(page: Any, canvas: str = "#canvas") -> np.ndarray:
    page.wait_for_timeout(100)
    picture = Image.open(io.BytesIO(page.locator(canvas).screenshot()))
    return np.asarray(picture.convert("RGB"), dtype=int)


def rgb(color: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", color)[:3]]


@pytest.mark.slow
def test_cards_of_the_index_sort_and_filter(page: Any, address: str, reported: Path) -> None:
    page.goto(f"{address}/index.html")
    assert shown(page) == NAMES
    cases = {case.name: case for case in read_cohort(reported)}
    for measure in ("fidelity", "flicker"):
        page.select_option("#sort", measure)
        known = sorted(NAMES[:2], key=lambda name: cases[name].measures[measure])
        assert shown(page) == [*known, "broken"]
        page.check("#descending")
        assert shown(page) == [*known[::-1], "broken"]  # what is unknown stays last
        page.uncheck("#descending")
    for choice, names in (
        ("failed", {"broken"}),
        ("kept", set()),
        ("suspect", {"a", HOSTILE_NAME}),
        ("all", set(NAMES)),
    ):
        page.check(f"input[value={choice}]")
        assert set(shown(page)) == names
        assert page.inner_text("#count") == f"{len(names)} of 3 cases"
    page.fill("#find", "ALERT")
    assert shown(page) == [HOSTILE_NAME]


def test_a_case_is_marked_in_the_distributions_by_keyboard(page: Any, address: str) -> None:
    page.goto(f"{address}/index.html")
    assert page.locator(".mark").count() == 0
    page.focus(".card[data-name=a] a")
    assert page.inner_text("#marked") == "Marked: a"
    assert page.locator(".mark").count() == page.locator(".distribution").count() == 4
    for box, line in zip(
        page.locator(".distribution").all(), page.locator(".mark").all(), strict=True
    ):
        outer, inner = box.bounding_box(), line.bounding_box()
        assert outer["x"] < inner["x"] < outer["x"] + outer["width"]
    page.keyboard.press("Enter")
    page.wait_for_url("**/report/a.html")


@pytest.mark.slow
def test_the_viewer_shows_all_layers(page: Any, address: str) -> None:
    for name in (HOSTILE_NAME, "a"):
        page.goto(f"{address}/report/{quote(name)}.html")
        page.wait_for_selector("#viewer[data-ready]", timeout=60_000)
    layers = page.locator("[data-layer] legend").all_inner_texts()
    assert layers == ["CT", "MR", "label", "fidelity map", "uncertainty"]
    sliders = page.locator(".opacity").all()
    for slider in sliders:
        slider.fill("0")
    empty, alone = pixels(page), []
    for slider in sliders:
        slider.fill("1")
        alone.append(pixels(page))
        slider.fill("0")
    for number, picture in enumerate(alone):
        assert (abs(picture - empty).max(axis=-1) > 20).mean() > 0.002, layers[number]
        assert all((abs(picture - other).max(axis=-1) > 20).any() for other in alone[:number])
    gray = [np.ptp(picture[picture.max(axis=-1) > 60], axis=-1).mean() for picture in alone[:2]]
    assert max(gray) < 60  # but for the crosshair
    sliders[1].fill("1")
    before = pixels(page)
    page.locator("[data-layer='1'] .high").fill("60")
    assert pixels(page).sum() > 1.1 * before.sum()  # a narrower window is brighter


def test_the_crosshair_follows_the_links_and_the_keys(page: Any, address: str) -> None:
    page.goto(f"{address}/report/a.html")
    page.wait_for_selector("#viewer[data-ready]", timeout=60_000)
    first, last = (page.locator(".slices a").nth(place) for place in (0, -1))
    pictures = []
    for link in (first, last):
        link.focus()
        page.keyboard.press("Enter")
        assert page.inner_text("#place").startswith(f"{link.inner_text()};")
        pictures.append(pixels(page))
    assert (pictures[0] != pictures[1]).any()
    page.focus("#slice")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#place").startswith(f"{int(last.inner_text()) - 1};")
    assert (pixels(page) != pictures[1]).any()


def test_ct_and_mr_share_one_crosshair(page: Any, address: str) -> None:
    page.set_viewport_size({"width": 1400, "height": 700})
    page.goto(f"{address}/report/a.html")
    page.wait_for_selector("#beside[data-ready]", timeout=120_000)
    assert page.is_checked("#side")
    boxes = [page.locator(canvas).bounding_box() for canvas in ("#canvas-ct", "#canvas")]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert abs(boxes[0]["width"] - boxes[1]["width"]) < 2
    first, last = (page.locator(".slices a").nth(place) for place in (0, -1))
    pictures = []
    for link in (first, last):
        link.click()
        pictures.append(pixels(page, "#canvas-ct"))
    assert (pictures[0] != pictures[1]).any()  # the CT follows
    before = page.inner_text("#place")
    page.locator("#canvas-ct").click(position={"x": 60, "y": 60})
    assert page.inner_text("#place") != before  # and leads
    dark = pixels(page, "#canvas-ct")
    page.locator("[data-layer='0'] .high").fill("-150")
    assert pixels(page, "#canvas-ct").sum() > 1.1 * dark.sum()  # its window is set once for both
    page.uncheck("#side")
    assert not page.is_visible("#canvas-ct")
    assert page.locator("#canvas").bounding_box()["width"] > 1.8 * boxes[1]["width"]


def test_a_key_flips_ct_and_mr_and_values_have_names(page: Any, address: str) -> None:
    page.goto(f"{address}/report/a.html")
    page.wait_for_selector("#viewer[data-ready]", timeout=60_000)
    contour = "(no contour|contour (given and found|invented|lost))"
    named = rf".* mm: CT -?\d+ HU, MR \d+, (no label|label \d+), {contour}, uncertainty .*"
    assert re.fullmatch(named, page.inner_text("#place"))
    assert page.inner_text("#legend").strip().startswith("label ")
    mr = pixels(page)
    page.keyboard.press("f")
    assert page.inner_text("#shown") == "shown: CT"
    assert (abs(pixels(page) - mr).max(axis=-1) > 20).any()
    page.keyboard.press("f")
    assert page.inner_text("#shown") == "shown: MR"
    assert (pixels(page) == mr).all()


def test_files_are_downloaded_and_opened_elsewhere(page: Any, address: str) -> None:
    page.goto(f"{address}/report/a.html")
    page.wait_for_selector("#viewer[data-ready]", timeout=60_000)
    names = []
    for link in page.locator(".downloads a[download]").all():
        names.append(link.inner_text())
        url = page.evaluate("(link) => link.href", link.element_handle())
        assert page.request.get(url).ok
    assert names == ["CT", "MR", "label", "fidelity map", "uncertainty", "record", "picture"]
    query = parse_qs(urlsplit(page.get_attribute("#slicer", "href")).query)
    assert [url.rpartition("/")[2] for url in query["image"]] == ["a.nii.gz", "a_mr.nii.gz"]
    assert all(page.request.get(url).ok for url in query["image"] + query["segmentation"])
    recipes = page.locator("pre").all_text_contents()
    assert "file_load(" in recipes[0]
    for recipe in recipes:
        compile(recipe, "recipe", "exec")


def test_a_dark_page_is_readable(page: Any, address: str) -> None:
    page.emulate_media(color_scheme="dark")
    for path in ("index.html", "report/a.html"):
        page.goto(f"{address}/{path}")
        styles = "(name) => getComputedStyle(document.querySelector(name))"
        ground = rgb(page.evaluate(f"({styles})('body').backgroundColor"))
        assert max(ground) < 60
        for name in ("body", "h1", "svg text", "dt"):
            color = "fill" if name == "svg text" else "color"
            assert min(rgb(page.evaluate(f"({styles})('{name}').{color}"))) > 120, name
    page.emulate_media(color_scheme="light")
    assert min(rgb(page.evaluate(f"({styles})('body').backgroundColor"))) > 200


def test_words_are_explained_where_they_stand(page: Any, address: str) -> None:
    page.goto(f"{address}/report/a.html")
    explained = page.locator(".term").first
    text = explained.inner_text()
    explained.locator("summary").click()
    assert len(explained.inner_text()) > len(text) + 40
    page.goto(f"{address}/index.html")
    assert page.locator(".card abbr").first.get_attribute("title") in page.content()


def test_a_file_shows_pictures_and_how_to_serve(page: Any, reported: Path) -> None:
    page.goto((reported / "index.html").as_uri())
    page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    page.click(".card[data-name=a] h3 a")
    assert page.is_visible("#note")
    assert f"contourdiff report {reported} --serve" in page.inner_text("#note")
    assert not page.is_visible("#viewer")
    assert page.inner_text("#note").endswith(
        "opened as a file. The picture below shows some slices."
    )
    assert page.evaluate("document.querySelector('.picture').naturalWidth") > 0


def test_a_derivative_dataset_is_shown(page: Any, reported: Path, tmp_path: Path) -> None:
    """Its volumes with the CT around it, without a picture."""
    raw, case = tmp_path / "raw", "sub-1_ct"
    for source, target in (
        ("ct/a.nii.gz", f"raw/sub-1/ct/{case}.nii.gz"),
        ("mr/a_mr.nii.gz", f"mr/{case}_mr.nii.gz"),
    ):
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(reported.parent / source, tmp_path / target)
    record = json.loads((reported / "a_mr.json").read_text()) | {
        "case": case,
        "image": f"{case}.nii.gz",
    }
    (tmp_path / "mr" / f"{case}_mr.json").write_text(json.dumps(record))
    folder = raw / "derivatives" / "contourdiff"
    write_derivatives([tmp_path / "mr" / f"{case}_mr.json"], folder)
    index = write_report(folder)
    with served(folder) as address:
        page.goto(f"{address}/index.html")
        page.click(".card h3 a")
        page.wait_for_selector("#viewer[data-ready]", timeout=60_000)
        assert page.locator("[data-layer] legend").all_inner_texts() == ["CT", "MR"]
    page.goto((index.parent / "report" / "sub-1_desc-contourdiff_T1w.html").as_uri())
    assert page.inner_text("#note").endswith("opened as a file.")


def test_a_model_card_shows_its_pictures(page: Any, tmp_path: Path) -> None:
    card = Path("bundles/contourdiff_ct2mr/docs/README.md")
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (REPOSITORY / card).read_text())
    for file in (card, *(card.parent / name for name in pictures)):
        (tmp_path / file).resolve().parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, (tmp_path / file).resolve())
    page.goto(write_markdown_page(tmp_path / card).as_uri())
    widths = page.evaluate(
        "Promise.all([...document.images].map((image) => image.decode().then(() => image.width)))"
    )
    assert len(widths) == len(pictures) > 0
    assert all(0 < width <= 800 for width in widths)
    assert page.evaluate("document.documentElement.scrollWidth") <= 800
    reached = []
    while len(reached) < 5:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.tagName"))
    assert set(reached) == {"PRE", "A"}  # code that is too wide is scrolled by keys


@pytest.mark.slow
def test_a_thousand_cases_are_sorted_in_the_browser(
    page: Any, reported: Path, tmp_path: Path
) -> None:
    large_cohort(reported, tmp_path / "mr", 1000)
    index = write_index(read_cohort(tmp_path / "mr"), tmp_path / "mr")
    page.goto(index.as_uri(), wait_until="load")
    page.select_option("#sort", "flicker")
    assert page.inner_text("#count") == "1000 of 1000 cases"
    cards = page.locator(".card")
    flicker = [float(cards.nth(place).get_attribute("data-flicker")) for place in (0, 1, 500, 999)]
    assert flicker == sorted(flicker)
