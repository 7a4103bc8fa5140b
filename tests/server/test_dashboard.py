"""The dashboard as an operator sees it: in a real headless Chromium, under its own content security policy.

Screenshots are written to $SAMEGUARD_SCREENSHOTS, or to the test's own folder.
"""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from admin_guards import TOKEN, FakeGuard, Ready, decision_of, live_through, settings_of

from sameguard.server.admin import create_admin

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip
LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("SAMEGUARD_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def served(guard: FakeGuard) -> Iterator[str]:
    """The admin port's address, on a loopback port that was free."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = create_admin(guard, guard.history.settings)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@contextmanager
def opened(
    browser: Any, address: str, *, script: bool = True, dark: bool = False, clock: bool = False, viewport: dict[str, int] = LAPTOP
) -> Iterator[Any]:
    """The page, of which nothing may be said on the console, nothing may be refused by the policy, and nothing may come from elsewhere.

    clock: the page's time passes only when it is told to.
    """
    context = browser.new_context(viewport=viewport, color_scheme="dark" if dark else "light", java_script_enabled=script)
    page, complaints, requests = context.new_page(), [], []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url[:200]}"))
    page.on("request", lambda request: requests.append(request.url))
    if clock:
        page.clock.install()
    page.goto(address)
    yield page
    assert complaints == []
    assert [url for url in requests if not url.startswith((address, "data:image/png;base64,"))] == []
    assert f"{address}/static/dashboard.css" in requests
    context.close()


def guard_of(*, mode: str = "enforce", lived: bool = True, thumbnails: bool = True) -> FakeGuard:
    guard = FakeGuard(settings_of(thumbnails=thumbnails, token=TOKEN), mode=mode)
    if lived:
        live_through(guard)
    return guard


def tile(page: Any, label: str) -> str:
    return page.locator(".tile", has=page.get_by_text(label, exact=True)).locator(".number").inner_text()


def test_an_operator_sees_what_happened(browser, screenshots):
    guard = guard_of()
    guard.ready = Ready(
        [*guard.ready.checks, ("canary queries", "warning", "answers moved by 0.0412 since calibration (up to 0.01 is rounding)")]
    )
    counts = guard.history.view(60).counts
    refused = sum(count for (outcome, _), count in counts.items() if outcome == "refuse")
    with served(guard) as address, opened(browser, address) as page:
        assert tile(page, "requests") == f"{counts.total():,}"
        assert tile(page, "refused") == str(refused)
        assert page.locator("svg.chart:visible").count() == 5
        assert page.locator(".banner.warning").inner_text().startswith("Warning: canary queries: answers moved by 0.0412")
        assert page.locator("table.recent tbody tr").count() == 50
        pictures = page.locator("table.recent img")
        assert pictures.count() == 150
        assert pictures.first.evaluate("image => image.complete && image.naturalWidth") == 84  # 28 pixels, each shown as 3
        assert (
            page.locator(".fill-allow").first.evaluate("bar => getComputedStyle(bar).fill") == "rgb(42, 127, 184)"
        )  # the stylesheet is applied
        page.screenshot(path=screenshots / "dashboard-enforce.png", full_page=True)
        page.get_by_role("link", name="6 h").click()
        assert page.get_by_role("heading", name="per 6 minutes").is_visible()


def test_shadow_mode_says_what_would_have_been_refused(browser, screenshots):
    guard = guard_of(mode="shadow")
    would = sum(count for (_, verdict), count in guard.history.view(60).counts.items() if verdict == "refuse")
    with served(guard) as address, opened(browser, address, dark=True) as page:
        assert page.locator("#shadow").inner_text().startswith("Shadow mode: every request is answered.")
        assert f"{would} refused" in page.locator("#shadow").inner_text()
        assert tile(page, "would be refused") == str(would)
        assert page.get_by_text("answered; would have been refused").first.is_visible()
        assert page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(18, 22, 28)"
        page.screenshot(path=screenshots / "dashboard-shadow-dark.png", full_page=True)


def test_an_empty_guard_has_clear_words_instead_of_charts(browser, screenshots):
    with served(guard_of(lived=False, thumbnails=False)) as address, opened(browser, address) as page:
        assert page.get_by_text("No requests yet.").count() == 3
        assert tile(page, "flagged") == "–"
        assert page.locator("svg.chart").count() == 0
        page.screenshot(path=screenshots / "dashboard-empty.png", full_page=True)


def test_a_narrow_screen_needs_no_sideways_scrolling(browser, screenshots):
    with served(guard_of()) as address, opened(browser, address, viewport=PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        page.screenshot(path=screenshots / "dashboard-narrow.png", full_page=True)


def test_it_works_without_javascript(browser):
    with served(guard_of()) as address, opened(browser, address, script=False) as page:
        assert page.locator("svg.chart:visible").count() == 5
        assert page.locator("#stale").is_hidden()


def test_the_page_refreshes_itself_and_says_so_when_the_guard_is_gone(browser):
    guard = guard_of(lived=False)
    with served(guard) as address:
        with opened(browser, address, clock=True) as page:
            assert tile(page, "requests") == "0"
            guard.observe(decision_of())
            with page.expect_response(lambda answer: answer.url == f"{address}/"):
                page.clock.run_for(5000)
            page.locator(".tile .number", has_text="1").first.wait_for()
            assert tile(page, "requests") == "1"
            assert page.locator("#stale").is_hidden()
        context = browser.new_context()
        page = context.new_page()
        page.clock.install()
        page.goto(address)
    page.clock.run_for(5000)
    page.locator("#stale").wait_for(state="visible")
    context.close()


def test_the_policy_forbids_what_the_page_does_not_need(browser):
    guard = guard_of(lived=False)
    with served(guard) as address:
        context = browser.new_context()
        page, refused = context.new_page(), []
        page.on("console", lambda message: refused.append(message.text))
        page.goto(address)
        page.evaluate(
            """() => {
                const script = document.createElement("script");
                script.textContent = "window.ran = true";
                document.body.append(script);
                document.body.setAttribute("style", "color: red");
                const form = document.createElement("form");
                form.action = "/reload"; form.method = "post";
                document.body.append(form); form.submit();
            }"""
        )
        assert page.evaluate("window.ran") is None
        deadline = time.monotonic() + 10
        while sum("Content Security Policy" in text for text in refused) < 3 and time.monotonic() < deadline:
            page.wait_for_timeout(50)  # the browser tells of a refused form a little later
        assert sum("Content Security Policy" in text for text in refused) == 3
        context.close()
    assert guard.reloads == 0
