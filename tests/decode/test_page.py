"""The page in a real browser: typed into, read, pointed at. Skipped where there is no Chromium."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from equilm.decode.text import Ids
from tests.decode.http_server import Pretender, Running, running

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Tests may run as root in a container, where the sandbox cannot.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(Pretender()) as one:
        yield one


@contextmanager
def opened(browser: Browser, server: Running, **settings: object) -> Iterator[Page]:
    """Open the page; nothing may be complained of and no other host be asked."""
    context = browser.new_context(**settings)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(30_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((server.url, "data:"))
            else complaints.append(request.url)
        ),
    )
    page.goto(server.url)
    yield page
    context.close()
    assert complaints == []


def send(page: Page, prompt: str, **numbers: object) -> None:
    page.fill("#prompt", prompt)
    for name, number in numbers.items():
        page.fill(f"#{name}", str(number))
    page.click("#send")


def done(page: Page) -> str:
    page.wait_for_selector("#status:has-text('Done')")
    return page.inner_text("#status")


def colour_of(page: Page, place: int) -> str:
    token = page.locator(".token").nth(place)
    return str(token.evaluate("token => getComputedStyle(token).backgroundColor"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_are_streamed_coloured_and_explained(
    scheme: str, browser: Browser, server: Running
) -> None:
    with opened(browser, server, color_scheme=scheme) as page:
        assert page.inner_text("h1") == "tiny" and "tiny" in page.title()
        send(page, "say a", max_tokens=8)
        assert re.match("Done: 8 tokens, 4.5 steps a token, ", done(page))
        assert page.inner_text("#answer") == "say abcdefghi"
        assert page.locator(".token").count() == 8
        # Steps 1 to 8: eight colours, and a legend with both ends.
        assert len({colour_of(page, place) for place in range(8)}) == 8
        assert (page.inner_text("#least"), page.inner_text("#most")) == ("1", "8")
        assert page.locator("#strip rect").count() == 8
        assert page.locator("#plot circle").count() == 0
        page.hover(".token >> nth=2")
        assert page.inner_text("#about").startswith('Token 3: "d" (id 100), 3 steps, converged')
        assert page.locator("#plot circle").count() == 2
        assert (page.locator("#plot .curve").get_attribute("d") or "").startswith("M")
        assert page.locator(".token.now").inner_text() == "d"


def test_the_residuals_fall_in_the_plot(browser: Browser, server: Running) -> None:
    with opened(browser, server) as page:
        send(page, "a", max_tokens=3)
        done(page)
        page.hover(".token >> nth=0")
        dots = page.locator("#plot circle").all()
        (x0, y0), (x1, y1) = (
            (float(dot.get_attribute("cx") or 0), float(dot.get_attribute("cy") or 0))
            for dot in dots
        )
        goal = float(page.locator("#plot .goal").get_attribute("y1") or 0)
        # 0.5 stands above the tolerance of 0.01, and 0.001 below it.
        assert x0 < x1 and y0 < goal < y1


def test_the_keyboard_is_enough(browser: Browser, server: Running) -> None:
    with opened(browser, server) as page:
        page.wait_for_function("document.activeElement.id === 'prompt'")
        page.keyboard.type("a")
        page.keyboard.press("Tab")
        page.keyboard.type("5")
        page.focus("#prompt")
        page.keyboard.press("Control+Enter")
        done(page)
        page.focus("#answer")
        for key, told in (
            ("", 'Token 1: "b"'),
            ("ArrowRight", 'Token 2: "c"'),
            ("ArrowRight", 'Token 3: "d"'),
            ("ArrowLeft", 'Token 2: "c"'),
            ("Home", 'Token 1: "b"'),
        ):
            if key:
                page.keyboard.press(key)
            assert page.inner_text("#about").startswith(told)
            assert page.locator("#plot circle").count() == 2


def test_what_the_server_refuses_is_shown(browser: Browser, server: Running) -> None:
    context = browser.new_context()
    page = context.new_page()  # a status of 400 is worth a line in the browser's console
    page.goto(server.url)
    send(page, "a", max_tokens=500)
    page.wait_for_selector("#status.bad")
    assert "at most 100 tokens" in page.inner_text("#status")
    assert page.is_enabled("#send")
    context.close()


def test_an_answer_can_be_stopped(browser: Browser) -> None:
    with running(Pretender(seconds=0.05)) as server, opened(browser, server) as page:
        send(page, "a", max_tokens=90)
        page.wait_for_selector(".token >> nth=3")
        assert not page.is_enabled("#send")
        page.click("#stop")
        page.wait_for_selector("#status:has-text('Stopped')")
        assert server.settles(2) and page.is_enabled("#send")
        assert 4 <= page.locator(".token").count() < 90


def test_numbers_can_be_shown_for_those_who_see_no_colours(
    browser: Browser, server: Running
) -> None:
    with opened(browser, server) as page:
        send(page, "a", max_tokens=3)
        done(page)
        script = "token => getComputedStyle(token, '::after').content"
        assert page.locator(".token").nth(1).evaluate(script) == "none"
        page.check("#numbers")
        assert page.locator(".token").nth(1).evaluate(script) == '"2"'


def test_a_prompt_is_text_and_never_markup(browser: Browser, server: Running) -> None:
    with opened(browser, server) as page:
        send(page, "<img src=x onerror=alert(1)>;", max_tokens=4)
        done(page)
        assert page.inner_text("#answer") == "<img src=x onerror=alert(1)>;<=>?"
        assert page.locator("#answer img").count() == 0


def test_token_ids_are_asked_for_where_there_is_no_tokenizer(browser: Browser) -> None:
    with running(Pretender(), Ids()) as server, opened(browser, server) as page:
        page.wait_for_selector("#prompt[placeholder^='Token ids']")
        send(page, "3 1 4", max_tokens=3)
        done(page)
        assert page.inner_text("#answer") == "3 1 4 5 6 7"


def test_a_browser_is_asked_for_the_key(browser: Browser) -> None:
    with running(Pretender(), api_key="s3cret") as server:
        key = {"username": "anyone", "password": "s3cret"}
        with opened(browser, server, http_credentials=key) as page:
            send(page, "a", max_tokens=3)
            done(page)


def test_a_small_screen_does_not_scroll_sideways(browser: Browser, server: Running) -> None:
    with opened(browser, server, viewport={"width": 360, "height": 640}) as page:
        send(page, "a" * 60, max_tokens=40)
        done(page)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360


def test_the_page_may_load_nothing_and_be_framed_by_nobody(server: Running) -> None:
    with server.client() as client:
        reply = client.get("/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    links = re.findall(r"""(?:src|href)=["']?([^"'> ]+)""", reply.text)
    assert links == ["data:,"]
