"""The report in a real browser: nothing fails, nothing sticks out, and what can be pressed does what it says."""

import json
import re
import shutil

import numpy as np
import pytest
from study_folders import read_lines, write_lines

from sequencematch.reporting import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed"),
]

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(star_folder, grid_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report([star_folder, grid_folder], path)
    return path


@pytest.fixture
def show(browser, report):
    """`show(size, scheme, path, **options)`: a report in a new page; fails at the end if anything on it did."""
    complaints, contexts = [], []

    def show(size="desktop", scheme="light", path=report, **options):
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.on("request", lambda request: complaints.extend([] if request.url.startswith("file:") else [request.url]))
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert complaints == []


def pixels(path):
    """uint8 [height, width, 3] of a PNG file."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def sticks_out(page):
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


@pytest.mark.parametrize("size", SIZES)
def test_page_fits_and_is_not_blank_in_both_schemes(size, show, tmp_path):
    shots = {}
    for scheme in ("light", "dark"):
        page = show(size, scheme)
        assert sticks_out(page) <= 0
        path = tmp_path / f"{size}-{scheme}.png"
        page.screenshot(path=path)
        shots[scheme] = pixels(path)
        page.locator("details.box:not(.group) > summary").evaluate_all(
            "summaries => summaries.forEach(one => one.click())"
        )
        assert sticks_out(page) <= 0
        assert len(np.unique(shots[scheme].astype(int) @ [1 << 16, 1 << 8, 1])) > 50
    assert shots["light"].mean() > 200
    assert shots["dark"].mean() < 60


def test_page_fits_a_small_phone(show):
    page = show("phone")
    page.set_viewport_size({"width": 360, "height": 640})
    assert sticks_out(page) <= 0


def test_long_words_do_not_stick_out(show, star_copy):
    about = json.loads((star_copy / "study.json").read_text())
    word = "x" * 120
    changes = {"title": word, "description": word, "titles": {"mle": word, "bc": "y " * 60}, "versions": {word: word}}
    (star_copy / "study.json").write_text(json.dumps({**about, **changes}))
    lines = read_lines(star_copy / "transcripts.jsonl")
    for line in lines:
        for item in line["items"]:
            item |= {
                "prompt": word,
                "completion": word,
                "expected": word,
                "pieces": [{"text": word, "fate": "deleted"}],
            }
    write_lines(star_copy / "transcripts.jsonl", lines)
    write_report([star_copy], star_copy / "report.html")
    assert sticks_out(show("phone", path=star_copy / "report.html")) <= 0


def test_charts_are_drawn_within_their_cards(show):
    page = show("phone")
    cards = page.locator("figure:visible").evaluate_all(
        "cards => cards.map(card => [card.getBoundingClientRect().right,"
        " ...[...card.querySelectorAll('use, text')].map(mark => mark.getBoundingClientRect().right)])"
    )
    assert len(cards) > 30
    assert all(mark <= card for card, *marks in cards for mark in marks)


def browse(page):
    """The transcript browser of the first study."""
    return page.locator("[data-browser]").first


def test_a_replay_shows_what_was_deleted_and_takes_it_back(show):
    page = show()
    page.clock.install(time=0)
    page.clock.pause_at(1000)
    card = browse(page).locator(".transcript:visible", has=page.locator("del")).first
    pieces, outcome, button = (card.locator(name) for name in (".piece", ".outcome", ".replay"))
    assert [pieces.nth(index).inner_text() for index in (0, 3, 4)] == ["h", "⟲", "v"]
    button.click()
    assert button.inner_text() == "■ stop"
    assert card.locator(".piece:visible").count() == 0
    for shown in range(1, 4):
        page.clock.run_for(550)
        assert card.locator(".piece:visible").count() == card.locator(".standing:visible").count() == shown
    assert not outcome.is_visible()
    page.clock.run_for(550)
    assert card.locator(".piece:visible").count() == 4
    assert card.locator(".standing").count() == 0
    page.clock.run_for(550 * 4)
    assert card.locator(".piece:visible").count() == pieces.count() == 8
    assert outcome.is_visible()
    assert button.inner_text() == "▶ replay"


def test_pieces_are_coloured_by_reward_or_value(show):
    box = browse(show())
    piece = box.locator(".transcript:visible .piece.r0").first
    colour = "one => getComputedStyle(one).backgroundColor"
    plain = piece.evaluate(colour)
    assert box.locator(".ramp:visible").count() == 0
    seen = {"plain": plain}
    for name in ("reward", "value"):
        box.get_by_text(name, exact=True).click()
        seen[name] = piece.evaluate(colour)
        scale = box.locator(".ramp:visible")
        assert scale.count() == 1
        assert ("r(s, a)" in scale.inner_text()) == (name == "reward")
        shade = re.search(rf"\b{name[0]}(\d)\b", piece.get_attribute("class"))[1]
        assert scale.locator(f".m{shade}").evaluate(colour) == seen[name]
    assert seen["reward"] != plain
    box.get_by_text("plain", exact=True).click()
    assert piece.evaluate(colour) == plain


def test_arms_and_decodings_can_be_chosen(show):
    box = browse(show())
    assert box.locator(".group:visible").count() == 1
    box.locator(".pick-cell").select_option(label="MLE")
    box.locator(".pick-decoding").select_option(label="Greedy")
    group = box.locator(".group:visible")
    assert group.locator("summary").text_content() == "MLE · Greedy"
    assert group.locator("del").count() == 0


def test_filters_and_pages(show):
    box = browse(show())
    cards = box.locator(".transcript:visible")
    assert cards.count() == 6
    assert box.locator(".place").inner_text() == "1–6 of 14"
    box.locator(".next").click()
    box.locator(".next").click()
    assert cards.count() == 2
    assert box.locator(".next").is_disabled()
    box.locator(".only-wrong").check()
    assert cards.count() == box.locator(".transcript.errs:visible").count() == 3
    assert box.locator(".pager").is_hidden()
    box.locator(".only-deletions").check()
    assert 0 < cards.count() < 3
    box.locator(".pick-cell").select_option(label="MLE")
    assert cards.count() == 0
    assert box.locator(".none:visible").count() == 1


def test_without_scripts_everything_can_still_be_read(show):
    page = show(java_script_enabled=False)
    box = browse(page)
    assert page.locator(".controls:visible, .pager:visible, .replay:visible").count() == 0
    opened = box.locator(".group[open]")
    assert opened.count() == 1
    assert opened.locator(".transcript:visible").count() == 14
    assert opened.locator(".ramp:visible").count() == 2
    box.locator(".group > summary").first.click()
    assert box.locator(".group").first.locator(".transcript:visible").count() == 14
    assert page.locator("svg.chart:visible").count() > 20
