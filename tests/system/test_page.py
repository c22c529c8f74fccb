"""The live page in a real headless Chromium: during a demo run, and with hostile text in every place."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small
import uvicorn
from gateway_in_memory import BOTH_KEY, Shop
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from running import until
from site_by_hand import VIEWERS_TOKEN, Site, alert, decision, figure, letter, window
from small import declaration, event, label

from tidemill import Pipeline
from tidemill.local.processes import free_port
from tidemill.offline.backtest import Backtest
from tidemill.report.page import render
from tidemill.report.recording import Recorder
from tidemill.watch.status.scrape import Instance, Sample, Scraper
from tidemill.web.connections import server_config
from tidemill.wire import topics

SCRIPT = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
CROSSED = """() => {
  const inside = (p, b) => p.x > b.left + 3 && p.x < b.right - 3 && p.y > b.top + 3 && p.y < b.bottom - 3;
  const boxes = [...document.querySelectorAll("#diagram .box")].map((box) => box.getBoundingClientRect());
  const labels = [...document.querySelectorAll("#diagram .labels text")].map((l) => [l.textContent, l.getBoundingClientRect()]);
  const wrong = [];
  for (const path of document.querySelectorAll("#diagram .bed")) {
    const matrix = path.getScreenCTM();
    for (let at = 0; at <= path.getTotalLength(); at += 2) {
      const point = path.getPointAtLength(at).matrixTransform(matrix);
      if (boxes.some((box) => inside(point, box))) wrong.push(`a wire in a box: ${path.getAttribute("d")}`);
    }
  }
  labels.forEach(([one, a], i) => labels.slice(i + 1).forEach(([other, b]) => {
    if (a.left < b.right && b.left < a.right && a.top + 3 < b.bottom - 3 && b.top + 3 < a.bottom - 3) wrong.push(`${one} on ${other}`);
  }));
  for (const [text, l] of labels)
    for (const box of boxes)
      if (l.left < box.right && box.left < l.right && l.top + 3 < box.bottom && box.top < l.bottom - 3) wrong.push(`${text} on a box`);
  return [...new Set(wrong)];
}"""
"""Returns what is wrong with the diagram."""
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("TIDEMILL_REQUIRE_CHROMIUM"):
            pytest.fail("the tests of the page are mandatory here, and there is no chromium")
        pytest.skip("NO CHROMIUM: install it (Debian: apt-get install chromium) to run the tests of the page")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which nothing may complain."""
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    complaints: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    page.on("console", heard)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A demo run, slow enough to be looked at; yields the address that it prints."""
    log = tmp_path_factory.mktemp("demo") / "demo.log"
    command = [
        sys.executable,
        "-m",
        "tidemill.cli",
        "demo",
        "--days",
        "8",
        "--seconds",
        "150",
        "--headless",
        "--keep-running",
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        until(lambda: "watch it at" in log.read_text(), "the demo does not say where", 90, lambda: alive(process, log))
        yield str(re.findall(r"http://localhost:\d+/", log.read_text())[0])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def alive(process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.poll() is None, log.read_text()


def figure_of(page: Page, name: str) -> str:
    return page.locator("#vitals > div", has=page.get_by_text(name, exact=True)).locator("dd").first.inner_text()


def test_during_a_demo_run_numbers_change_and_spoilt_events_come_with_their_reasons(demo: str, page: Page) -> None:
    page.goto(demo)
    expect(page.locator("#pipeline")).to_have_text("departures", timeout=20_000)
    expect(page.locator("#connection")).to_contain_text("live", timeout=20_000)
    before = figure_of(page, "Records in")
    for name in ("validator", "featurizer", "materializer", "scorer", "joiner", "archiver", "monitor"):
        expect(page.locator("#diagram")).to_contain_text(name)
    expect(page.locator("#reason-table")).to_contain_text("out_of_range", timeout=60_000)
    expect(page.locator("#reason-table")).to_contain_text("77 where 0 to 23 was expected")
    until(lambda: figure_of(page, "Records in") != before, "the numbers stand still", 20)
    expect(page.locator("#model-table")).to_contain_text("scheduled", timeout=30_000)
    expect(page.locator("#freshness-note")).to_contain_text("all within their objectives", timeout=90_000)
    expect(page.locator("#freshness-table")).to_contain_text("tailnum_outcome")
    expect(page.locator("#rule-table")).to_contain_text("between", timeout=60_000)


def test_a_prediction_and_an_entity_are_looked_up_from_the_page(demo: str, page: Page) -> None:
    page.goto(f"{demo}#entity=JFK")
    expect(page.locator("#lookup-result")).to_contain_text("origin_count_1h", timeout=60_000)
    expect(page.locator("#lookup-result")).to_contain_text("before the newest event")
    page.get_by_label("Prediction", exact=True).check(force=True)
    page.locator("#lookup-form input[type=search]").fill("UA1545-EWR-2013-01-01T10:15Z")
    page.keyboard.press("Enter")
    expect(page.locator("#lookup-result")).to_contain_text("2013-01-01T10:15Z", timeout=30_000)
    expect(page.locator("#lookup-result")).to_contain_text("departures.prediction-log")
    expect(page.locator("#lookup-result")).to_contain_text("champion")
    expect(page.locator("#lookup-result")).to_contain_text(
        "not in the view"
    )  # the first day: no view knows its airport


@pytest.fixture
def shop() -> Iterator[tuple[str, Shop]]:
    """A gateway whose river is in memory."""
    shop = Shop(Pipeline(**declaration()))
    server = uvicorn.Server(server_config(shop.app, "127.0.0.1", port := free_port()))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started and shop.gateway.ready() is None, "the gateway does not start", 20)
    yield f"http://127.0.0.1:{port}/", shop
    server.should_exit = True
    thread.join(20)


def test_an_event_is_sent_from_the_gateways_page_and_its_way_through_the_river_is_shown(
    shop: tuple[str, Shop], browser: Browser
) -> None:
    """TIDEMILL_PAGE_PICTURE=docs/try.png takes the picture in the docs."""
    url, gateway = shop
    gateway.client.post("/v1/events", json=event("before", 1_700_000_000_000))  # what the example is like
    page = browser.new_page(viewport=WIDE)
    page.goto(url)
    expect(page.locator("#pipeline")).to_have_text("small")
    page.get_by_role("button", name="Begin").first.click()
    page.locator("dialog input").fill("no-key-of-anybody-0123456789abc")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_contain_text("known here was expected")
    page.get_by_role("button", name="Begin").first.click()
    page.locator("dialog input").fill(BOTH_KEY)
    page.keyboard.press("Enter")
    field, way = page.locator("#event-form textarea"), page.locator("#way")
    expect(field).to_have_value(re.compile('"carrier": "UA"'))
    sent = json.loads(field.input_value())
    field.fill(json.dumps({**sent, "carrier": "<b>UA</b>"}))
    page.get_by_role("button", name="Send it").click()
    expect(way.locator("li.is-reached")).to_have_count(4, timeout=20_000)
    expect(way).to_contain_text("small.events.valid")
    expect(way).to_contain_text("by linear")
    expect(page.locator("#details")).to_contain_text("<b>UA</b>")
    value = json.loads(page.locator("#label-form textarea").input_value())
    assert value["flight_id"] == sent["flight_id"]
    page.locator("#label-form textarea").fill(json.dumps(label(sent["flight_id"], sent["asked_at"] + 600_000)))
    page.get_by_role("button", name="Send the label").click()
    expect(way.locator("li.is-reached")).to_have_count(5, timeout=20_000)
    expect(way).to_contain_text("small.examples [0] @ 0")
    if picture := os.environ.get("TIDEMILL_PAGE_PICTURE"):
        page.screenshot(path=picture, full_page=True)
    page.get_by_role("button", name="Another one").click()
    expect(field).not_to_have_value(re.compile(sent["flight_id"]))
    field.fill(json.dumps({**json.loads(field.input_value()), "sched_hour": 77}))
    page.get_by_role("button", name="Send it").click()
    expect(way.locator("li.is-refused")).to_contain_text("77 where 0 to 23 was expected")
    assert len(gateway.predictions()) == 2
    page.close()


@pytest.fixture(scope="module")
def hostile() -> Iterator[tuple[str, Site]]:
    """The service itself, that knows of nothing but scripts."""
    site, port = Site(), free_port()
    site.follower._letter(letter(SCRIPT, SCRIPT, SCRIPT))
    said = [figure("psi", 9.0, feature="distance"), figure("missing", 0.1, feature="distance")]
    said += [figure("freshness_p99", 9000.0, feature="origin"), figure("freshness_p99", 9e6, feature="dest")]
    said += [figure("stale", 0.03, feature="dest"), figure("warned", 0.07, segment=f"{SCRIPT}:between", feature=SCRIPT)]
    site.tell(topics.WINDOWS, *(window("prediction-log", n * 100, figures=said) for n in range(3)))
    said = [figure("Accuracy", 0.7, model=name) for name in ("logreg", SCRIPT)]
    said.append(figure("Accuracy", 0.6, model="logreg", segment=f"carrier={SCRIPT}"))
    said += [figure("label_delay_p50", 9e3), figure("label_delay_p95", 44e3), figure("label_coverage", 0.876)]
    site.tell(topics.WINDOWS, *(window("examples", n * 100, figures=said) for n in range(3)))
    site.tell(topics.ALERTS, alert(f"drift:{SCRIPT}", message=SCRIPT, look_at=SCRIPT, model=SCRIPT, segment=SCRIPT))
    site.tell(topics.ALERTS, alert("stale:dest", figure="stale", value=0.03, limit=0.01))
    for name in ("featurizer", "materializer", "joiner"):
        site.scraper.services[name] = "http://x"
        samples = [Sample(0.0, 0.0, 0.0, 0.0), Sample(3.0, 1200.0, 2.0, 30.0)]
        site.scraper._instances[name, "0"] = Instance(name, "0", "http://x", state="ok", why="", samples=samples)
    site.app.state.parts.overview.others = others = Scraper(
        {SCRIPT: "http://127.0.0.1:1", "orders": "http://localhost:2"}
    )
    others._instances[SCRIPT, "0"] = Instance(SCRIPT, "0", "http://127.0.0.1:1", state="down", why=SCRIPT)
    others._instances["orders", "0"] = Instance("orders", "0", "http://localhost:2", state="ok", why="")
    server = uvicorn.Server(uvicorn.Config(site.app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "the server does not start", 20)
    yield f"http://127.0.0.1:{port}/", site
    server.should_exit = True
    thread.join(10)


def test_a_script_stays_text_wherever_it_is_put(hostile: tuple[str, Site], page: Page) -> None:
    page.goto(hostile[0])
    for place in ("#reason-table", "#letter-table", "#segment-table", "#rule-table", "#alerts-open", "#pipelines"):
        expect(page.locator(place)).to_contain_text("<script>", timeout=15_000)
    time.sleep(1.5)  # another snapshot
    assert page.evaluate("window.hacked") is None
    assert page.locator("main script, main img").count() == 0


def test_the_other_pipelines_are_listed_with_the_way_to_their_pages(hostile: tuple[str, Site], page: Page) -> None:
    page.goto(hostile[0])
    listed = page.get_by_role("navigation", name="Other pipelines")
    expect(listed.get_by_role("link", name="orders")).to_have_attribute("href", "http://localhost:2", timeout=15_000)
    expect(listed.get_by_role("listitem").first).to_contain_text("can't be reached")


def test_a_view_beyond_its_objective_has_a_sign_and_others_have_none(hostile: tuple[str, Site], page: Page) -> None:
    page.goto(hostile[0])
    row = page.locator("#freshness-table tr[data-key=origin]")
    expect(row).to_contain_text("2.5\u202fh", timeout=15_000)
    expect(page.locator("#freshness-note")).to_contain_text("1 view beyond the objective")
    assert page.get_by_role("img", name="beyond the objective").count() == 1
    assert row.get_by_role("img", name="beyond the objective").count() == 1
    expect(page.locator("#freshness-table tr[data-key=dest]")).to_contain_text("alert")
    page.get_by_role("button", name="Show in freshness").click()
    expect(page.locator("#freshness-table tr[data-key=dest][data-found]")).to_have_count(1)


def test_a_report_does_not_scroll_sideways_on_a_phone(page: Page) -> None:
    run = Backtest(small.make())
    recorder = Recorder(run)
    events = [small.event(f"f{n}", n * small.MINUTE) for n in range(300)]
    labels = [small.label(f"f{n}", n * small.MINUTE + 1, float(n % 7)) for n in range(300)]
    page.set_viewport_size(NARROW)
    page.set_content(render(recorder.finish(run.run(events, labels))))
    assert page.locator("table").count() >= 2
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


@pytest.mark.parametrize("width", [NARROW["width"], 640, 1000, 1280, 1440])
def test_no_figure_at_the_top_is_cut_off(hostile: Any, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(hostile[0])
    expect(page.locator("#vitals")).to_contain_text("coverage 87.6\u202f%", timeout=15_000)
    cut = """() => [...document.querySelectorAll("#vitals dt, #vitals dd")]
        .filter((node) => node.scrollWidth > node.clientWidth || node.scrollHeight > node.clientHeight + 1)
        .map((node) => node.innerText)"""
    assert page.evaluate(cut) == []


@pytest.fixture
def gate(hostile: tuple[str, Site]) -> Iterator[Site]:
    """The service with a gate and a notifier among those that it asks."""
    site = hostile[1]
    samples = [Sample(0.0, 0.0, 0.0, 0.0), Sample(3.0, 1200.0, 2.0, 30.0)]
    for name in ("gate", "notifier"):
        site.scraper.services[name] = "http://x"
        site.scraper._instances[name, "0"] = Instance(name, "0", "http://x", state="ok", why="", samples=samples)
    yield site
    for name in ("gate", "notifier"):
        del site.scraper._instances[name, "0"], site.scraper.services[name]
    site.follower.decisions.clear()


@pytest.mark.parametrize("width", [1060, 1280, 1440, 1900])
def test_no_wire_of_the_river_crosses_a_box_and_no_two_labels_meet(hostile: Any, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(hostile[0])
    expect(page.locator("#diagram .boxes")).to_contain_text("materializer", timeout=15_000)
    expect(page.locator("#diagram .boxes")).not_to_contain_text("gate")
    assert page.evaluate(CROSSED) == []


@pytest.mark.parametrize("width", [1060, 1280, 1440, 1900])
def test_so_it_is_with_a_gate_and_a_notifier(hostile: Any, gate: Site, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(hostile[0])
    expect(page.locator("#diagram .boxes")).to_contain_text("gate", timeout=15_000)
    expect(page.locator("#diagram .labels")).to_contain_text("promotions")
    expect(page.locator("#diagram .boxes")).to_contain_text("notifier")
    expect(page.locator("#diagram .labels")).to_contain_text("alerts")
    assert page.evaluate(CROSSED) == []


def test_a_proposal_is_there_to_act_on_with_its_evidence_until_it_is_decided(
    hostile: Any, gate: Site, page: Page
) -> None:
    gate.tell(topics.PROMOTIONS, decision(1, "proposed", "logreg", why=SCRIPT))
    page.goto(hostile[0])
    expect(page.locator("#proposals")).to_contain_text("tidemill models promote flights slow", timeout=15_000)
    expect(page.locator("#nav-proposals")).to_have_text("1")
    expect(page.locator("#evidence")).to_contain_text("slow against logreg")
    expect(page.locator("#evidence")).to_contain_text("from +0.0050 to +0.0150")
    worse = page.locator("#evidence-table tr.is-alert")
    expect(worse).to_have_count(1)  # carrier AA; the gate allows 0.02
    expect(worse).to_contain_text("carrier AA")
    gate.tell(topics.PROMOTIONS, decision(2, "pinned", "slow@26000", pinned=True, subject="slow@26000", evidence=[]))
    expect(page.locator("#proposals")).to_be_hidden(timeout=15_000)
    expect(page.locator("#nav-proposals")).to_be_hidden()
    expect(page.locator("#promotions-note")).to_contain_text("slow@26000 serves, pinned")
    expect(page.locator("#model-table")).to_contain_text("champion, pinned at 26\u202f000")
    page.locator("#promotion-table tr[data-key=d2] button").click()
    expect(page.locator("#evidence")).to_contain_text("No evidence")
    assert page.evaluate("window.hacked") is None


def test_nothing_scrolls_sideways_on_a_phone_and_everything_is_reached_by_keyboard(hostile: Any, page: Page) -> None:
    page.set_viewport_size(NARROW)
    page.goto(hostile[0])
    expect(page.locator("#alerts-open")).to_contain_text("<script>", timeout=15_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.tagName + ':' + (document.activeElement.innerText || '').slice(0, 20)"
            )
        )
    assert any(name.startswith("BUTTON:Acknowledge") for name in reached), reached
    assert any(name.startswith("A:Alerts") for name in reached)


def test_an_alert_is_acknowledged_from_the_page_with_the_token(hostile: tuple[str, Site], page: Page) -> None:
    address, site = hostile
    page.goto(address)
    page.get_by_role("button", name="Acknowledge").first.click()
    page.get_by_role("textbox", name="Reason").fill("looking at it")
    page.locator("#acknowledge input[name=token]").fill(site.token)
    page.locator("#acknowledge button.primary").click()
    until(lambda: bool(site.said), "nothing was said", 10)
    assert site.said[-1][1:] == ("anna", "looking at it")


def test_a_lost_server_is_said_and_found_again(browser: Browser) -> None:
    page = browser.new_page()  # of its own: that a request failed is a complaint
    site, port = Site(), free_port()

    def serve() -> Callable[[], None]:
        server = uvicorn.Server(
            uvicorn.Config(site.app, host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        until(lambda: server.started, "the server does not start", 20)

        def stop() -> None:
            server.should_exit = True
            thread.join(10)

        return stop

    stop = serve()
    page.goto(f"http://127.0.0.1:{port}/")
    expect(page.locator("#connection")).to_contain_text("live", timeout=15_000)
    stop()
    expect(page.locator("#lost")).to_be_visible(timeout=20_000)
    stop = serve()
    expect(page.locator("#connection")).to_contain_text("live", timeout=30_000)
    page.close()
    stop()


def test_where_reading_needs_a_token_the_page_asks_for_it_and_keeps_it_nowhere(browser: Browser) -> None:
    page = browser.new_page()  # of its own: that a request was refused is a complaint
    site, port = Site(reading_is_free=False), free_port()
    site.tell(topics.ALERTS, alert())
    server = uvicorn.Server(uvicorn.Config(site.app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "the server does not start", 20)
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))

    page.goto(f"http://127.0.0.1:{port}/")
    expect(page.locator("#token")).to_be_visible(timeout=15_000)
    expect(page.locator("#connection")).to_contain_text("no token")
    expect(page.locator("#pipeline")).to_have_text("…")
    for wrong in ("wrong-token-🔑", "another-token-0123456789abcdefghij"):
        page.locator("#token input").fill(wrong)
        page.keyboard.press("Enter")
        expect(page.locator("#token-error")).to_contain_text("token", timeout=10_000)
    page.locator("#token .cancel").click()
    page.get_by_role("button", name="Enter the token").click()
    expect(page.locator("#token")).to_be_visible()
    page.locator("#token input").fill(VIEWERS_TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#connection")).to_contain_text("live", timeout=15_000)
    expect(page.locator("#pipeline")).to_have_text("flights")

    page.locator("#lookup-form input[type=search]").fill("no-such-flight")
    page.locator("#lookup-form input[type=search]").press("Enter")
    expect(page.locator("#lookup-result")).to_contain_text("No prediction of event", timeout=15_000)
    page.get_by_role("button", name="Acknowledge").first.click()
    page.get_by_role("textbox", name="Reason").fill("a viewer tries")
    page.locator("#acknowledge button.primary").click()
    expect(page.locator("#acknowledge-error")).to_contain_text("Vera is viewer, and this needs operator")
    assert site.said == []
    kept = page.evaluate(
        "[document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage), location.href]"
    )
    assert not [text for text in (*kept, *addresses) if VIEWERS_TOKEN in text]
    page.close()
    server.should_exit = True
    thread.join(10)
