"""The interactive page as a person meets it: in a headless Chromium."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_server import Served, serve_page
from small_models import write_box

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# WebGL without a graphics card.
ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
LONG = 60_000  # milliseconds: a busy machine's


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'eagan-eat[app]'")
    with serve_page(tmp_path_factory.mktemp("page"), "--max-upload", "1") as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} on the path")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(served: Served, browser: Any) -> Iterator[Any]:
    """The page, just opened. It has asked nobody but its server for anything, and no script of it has failed."""
    page = browser.new_page(viewport={"width": 1280, "height": 960})
    page.set_default_timeout(LONG)
    asked, failures = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda message: failures.append(message.text) if "Content Security" in message.text else None)
    page.goto(served.url)
    page.get_by_role("tab", name="Sample").wait_for()
    yield page
    assert [url for url in asked if not url.startswith((served.url, "data:", "blob:", "about:"))] == []
    assert failures == []
    page.close()


def drop(page: Any, path: Path) -> None:
    page.locator("[role=tabpanel]:visible input[type=file]").first.set_input_files(path)


def visible(page: Any, selector: str) -> Any:
    return page.locator(f"{selector}:visible")


def test_samples_are_drawn(page: Any) -> None:
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Images", exact=False).first.fill("6")
    page.get_by_role("button", name="Draw").click()
    page.get_by_text("ship, seed 8").wait_for()
    page.get_by_text("ship, seed 8").scroll_into_view_if_needed()  # pictures out of sight may not be loaded
    page.wait_for_function(
        "(w => w.length == 6 && w.every(x => x == 32))"
        "([...document.querySelectorAll('button.thumbnail-item img')].map(i => i.naturalWidth))"
    )
    with page.expect_download() as download:
        page.get_by_text("Single images (.zip)").click()
    assert download.value.suggested_filename == "samples.zip"


def test_a_dropped_mesh_is_classified_and_can_be_turned(page: Any, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Classify").click()
    drop(page, write_box(tmp_path / "box.off"))
    page.get_by_text("%").first.wait_for()
    frame = page.frame_locator("iframe.shape:visible")
    frame.get_by_text("box.off").wait_for()
    assert frame.locator("#failure").count() == 0
    before = frame.locator("canvas").screenshot()
    box = visible(page, "iframe.shape").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 240)
    page.mouse.up()
    page.wait_for_timeout(500)
    assert frame.locator("canvas").screenshot() != before


def test_a_corrupt_mesh_is_told_in_words_and_the_page_lives_on(page: Any, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Segment").click()
    bad = tmp_path / "bad <b>shape.off"
    bad.write_text("OFF\n3 1 0\nnonsense")
    drop(page, bad)
    visible(page, ".mistake").wait_for()
    words = visible(page, ".mistake").inner_text()
    assert "not a readable .off file" in words and "Traceback" not in words and "/" not in words
    visible(page, "[aria-label='Clear']").click()
    drop(page, write_box(tmp_path / "box.ply"))
    page.frame_locator("iframe.shape:visible").get_by_text(re.compile("box: [xy]")).wait_for()
    assert visible(page, ".mistake").count() == 0
    assert visible(page, "table.numbers tbody tr").count() >= 1
    with page.expect_download() as download:
        page.get_by_text("(.ply)").click()
    assert download.value.suggested_filename == "box-parts.ply"


def test_a_file_that_is_too_large_is_told(page: Any, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Classify").click()
    large = tmp_path / "large.off"
    large.write_bytes(b"OFF" + bytes(2**21))
    drop(page, large)
    page.get_by_text(re.compile("maximum", re.IGNORECASE)).first.wait_for()
