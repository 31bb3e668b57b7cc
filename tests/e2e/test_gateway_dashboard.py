"""The dashboard in a real Chromium, in front of the real gateway over a log that is filled beforehand."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import dashboard_log
import pytest
import requests
from dashboard_browser import CONTRASTS, choice, chromium, opened, sign_in, tile
from doubles.anthropic_api import AnthropicApi
from gateway_process import MESSAGES, Gateway, serving_gateway
from playwright.sync_api import Browser, Page, expect

from inference_service import sql

ROWS = 3000
HOSTILE = "<img src=x onerror=\"alert('caller')\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def claude() -> Iterator[AnthropicApi]:
    with AnthropicApi() as api:
        yield api


@pytest.fixture(scope="module")
def gateway(browser: Browser, claude: AnthropicApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    database = sql.open(sql.sqlite_url(folder / "state" / "requests.db"))
    dashboard_log.fill(database, ROWS, days=0.9)
    database.close()
    with serving_gateway(folder, upstream_url=claude.url, upstream_key=claude.key) as running:
        yield running


@pytest.fixture
def page(browser: Browser, gateway: Gateway) -> Iterator[Page]:
    with opened(browser, f"{gateway.url}/dashboard", gateway.admin_key) as shown:
        yield shown


def test_a_wrong_key_shows_nothing_and_says_so(browser: Browser, gateway: Gateway) -> None:
    with opened(browser, f"{gateway.url}/dashboard", None) as page:
        expect(page.get_by_label("Admin key", exact=True)).to_be_focused()
        page.keyboard.type("wrong-key-wrong-key")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").filter(has_text="That key is not the admin key.")).to_be_visible()
        expect(page.locator("#figures")).to_be_hidden()
        assert page.evaluate("sessionStorage.length") == 0


def test_the_key_lives_in_this_tab_and_in_no_address(page: Page, gateway: Gateway) -> None:
    assert gateway.admin_key not in page.url
    assert page.evaluate("Object.values(sessionStorage)") == [gateway.admin_key]
    assert gateway.admin_key not in str(page.evaluate("[Object.values(localStorage), document.cookie]"))
    page.reload()
    page.locator("#tiles .value").first.wait_for()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Admin key", exact=True)).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0
    page.reload()
    expect(page.locator("#figures")).to_be_hidden()


def test_the_figures_are_those_of_the_log(page: Page, gateway: Gateway) -> None:
    rows = gateway.rows("caller <> 'app'")
    assert tile(page, "Requests") == f"{len(rows):,}"
    assert tile(page, "Spend") == f"${sum(float(row['cost_usd'] or 0) for row in rows):.2f}"
    unpriced = sum(row["cost_usd"] is None for row in rows)
    assert tile(page, "Without a price") == str(unpriced)
    loud = page.get_by_role("region", name=f"{unpriced} requests have no price")
    expect(loud).to_be_visible()
    expect(loud.get_by_role("link", name="claude-preview-x")).to_be_visible()
    assert page.locator("[data-table=budgets] tbody tr").count() == 6


def test_filters_are_in_the_address_and_back_goes_back(browser: Browser, page: Page, gateway: Gateway) -> None:
    all_requests = tile(page, "Requests")
    choice(page, "Caller").select_option("playground")
    expect(page.locator("#tiles")).not_to_contain_text(all_requests)
    playground = tile(page, "Requests")
    assert parse_qs(urlsplit(page.url).query) == {"caller": ["playground"]}
    page.locator("[data-table=models]").get_by_role("link", name="claude-opus-5-5").click()
    expect(page.locator("[data-table=models] tbody tr")).to_have_count(1)
    both = tile(page, "Requests")
    assert parse_qs(urlsplit(page.url).query) == {"caller": ["playground"], "model": ["claude-opus-5-5"]}
    expect(choice(page, "Model")).to_have_value("claude-opus-5-5")
    with opened(browser, page.url, gateway.admin_key) as other:
        assert tile(other, "Requests") == both
        expect(choice(other, "Caller")).to_have_value("playground")
    page.go_back()
    expect(page.locator("[data-table=models] tbody tr")).not_to_have_count(1)
    assert tile(page, "Requests") == playground
    page.get_by_role("button", name="Clear filters").click()
    expect(page.locator("#tiles")).to_contain_text(all_requests)
    assert not urlsplit(page.url).query


def test_a_range_of_ones_own_is_a_link_too(browser: Browser, page: Page, gateway: Gateway) -> None:
    choice(page, "Range").select_option("custom")
    page.get_by_role("textbox", name="From", exact=True).fill(
        page.evaluate("new Date(Date.now() - 3 * 3600e3).toISOString().slice(0, 16)")
    )
    page.wait_for_url(re.compile(r"since=\d{4}-"))
    expect(page.locator("#main")).to_have_attribute("aria-busy", "false")
    some = tile(page, "Requests")
    with opened(browser, page.url, gateway.admin_key) as other:
        assert tile(other, "Requests") == some
        expect(choice(other, "Range")).to_have_value("custom")
        assert other.get_by_role("textbox", name="From", exact=True).input_value()


def test_live_requests_come_and_go_by_themselves(page: Page, gateway: Gateway, claude: AnthropicApi) -> None:
    def ask() -> None:
        requests.post(
            gateway.url + MESSAGES,
            headers={"x-api-key": gateway.caller_key("app")},
            json={
                "model": "claude-haiku-4-5",
                "max_tokens": 50,
                "messages": [{"role": "user", "content": "Wait [[first_byte=9]]"}],
            },
            timeout=60,
        )

    asking = threading.Thread(target=ask)
    asking.start()
    live = page.locator("[data-table=live]")
    try:
        expect(live.get_by_role("row").filter(has_text="app")).to_contain_text("claude-haiku-4-5", timeout=15_000)
        expect(live).to_contain_text("waiting")
    finally:
        asking.join()
    expect(live).to_contain_text("Nothing is being answered", timeout=15_000)


def test_names_are_text_whatever_they_are(browser: Browser, gateway: Gateway) -> None:
    database = sql.open(sql.sqlite_url(gateway.database))
    with database.transaction() as cursor:
        for field in ("caller", "team", "model", "route", "error_type"):
            values = {"caller": "x", "model": "m", "route": "/r", "team": "t", "error_type": "e", field: HOSTILE}
            cursor.execute(
                "INSERT INTO requests (request_id, time, network_arch, http_status, total_seconds, cost_usd,"
                " caller, model, route, team, error_type) VALUES (:id, :time, 'a', 500, 1.0, '0.5',"
                " :caller, :model, :route, :team, :error_type)",
                {"id": f"hostile-{field}", "time": datetime.fromtimestamp(time.time() - 30, timezone.utc), **values},
            )
    database.close()
    try:
        with opened(browser, f"{gateway.url}/dashboard?range=15m", gateway.admin_key) as page:
            for table in ("callers", "models", "routes", "errors"):
                expect(page.locator(f"[data-table={table}]").get_by_role("link", name=HOSTILE)).to_be_visible()
            assert page.locator("img").count() == 0
            page.locator("[data-table=callers]").get_by_role("link", name=HOSTILE).click()
            expect(choice(page, "Caller")).to_have_value(HOSTILE)
            expect(page.locator("[data-table=callers] tbody tr")).to_have_count(1)
            for details in page.locator("details").all():
                if details.is_visible():
                    details.locator("summary").click()
            assert page.locator("img").count() == 0
    finally:
        database = sql.open(sql.sqlite_url(gateway.database))
        with database.transaction() as cursor:
            cursor.execute("DELETE FROM requests WHERE network_arch = 'a'")
        database.close()


def test_no_script_but_the_pages_own_runs(gateway: Gateway) -> None:
    answer = requests.get(f"{gateway.url}/dashboard", timeout=10)
    policy = answer.headers["content-security-policy"]
    assert "'unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", answer.text)
    assert requests.get(f"{gateway.url}/dashboard/data", timeout=10).status_code == 401
    as_caller = {"Authorization": f"Bearer {gateway.caller_key('app')}"}
    assert requests.get(f"{gateway.url}/dashboard/data", headers=as_caller, timeout=10).status_code == 401


def test_every_control_has_a_name_and_every_chart_a_table(page: Page) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, a[href], summary, [tabindex='0']")]
            .filter((node) => node.checkVisibility())
            .filter((node) => !(node.labels && node.labels.length && node.labels[0].textContent.trim())
                && !node.getAttribute("aria-label") && !node.textContent.trim())
            .map((node) => node.outerHTML.slice(0, 100))"""
    )
    assert nameless == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))
    for landmark in ("banner", "main", "search", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3')].filter((n) => n.checkVisibility()).map((n) => +n.tagName[1])"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for name in ("Spend per caller", "Tokens per caller", "Latency", "Errors by type"):
        section = page.get_by_role("region", name=name, exact=True)
        expect(section.get_by_role("img")).to_have_attribute("aria-label", re.compile(f"^{name}: "))
        section.get_by_text("Show as a table").click()
        expect(section.get_by_role("table", name=name)).to_be_visible()
        assert section.locator("tbody th[scope=row]").count() > 10
        assert section.locator("thead th[scope=col]").count() > 1
    assert page.get_by_role("status").count() >= 1
    assert page.evaluate("document.documentElement.lang") == "en"


def test_everything_is_reached_and_read_by_keyboard(page: Page) -> None:
    page.reload()
    page.locator("#tiles .value").first.wait_for()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the figures")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    chart = page.locator("[data-chart=spend] [role=img]")
    for _ in range(8):
        page.keyboard.press("Tab")
        if chart.evaluate("(node) => node === document.activeElement"):
            break
    expect(chart).to_be_focused()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("[data-chart=spend] .tip")).to_be_visible()
    expect(page.locator("[data-chart=spend] [role=status]")).to_contain_text("$")
    page.keyboard.press("Tab")
    expect(page.locator("[data-chart=spend] summary")).to_be_focused()
    expect(page.locator("[data-chart=spend] .tip")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.locator("[data-chart=spend] table")).to_be_visible()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_a_refresh_takes_neither_the_focus_nor_what_was_opened(page: Page) -> None:
    page.locator("[data-chart=errors] summary").click()
    link = page.locator("[data-table=callers]").get_by_role("link", name="code-review")
    link.focus()
    before = page.locator("#updated").inner_text()
    expect(page.locator("#updated")).not_to_have_text(before, timeout=15_000)
    expect(page.locator("[data-table=callers]").get_by_role("link", name="code-review")).to_be_focused()
    expect(page.locator("[data-chart=errors] table")).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#updated")).to_contain_text("Paused")
    expect(page.get_by_role("button", name="Pause")).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough(browser: Browser, gateway: Gateway, scheme: str) -> None:
    with opened(browser, f"{gateway.url}/dashboard", None, color_scheme=scheme) as page:
        assert page.evaluate(CONTRASTS) == []
        sign_in(page, gateway.admin_key)
        page.locator("[data-chart=spend] summary").click()
        assert page.evaluate(CONTRASTS) == []


def test_the_colours_can_be_chosen_and_stay(page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_label("Colours").select_option("dark")
    dark = page.evaluate(ground)
    assert dark != light
    assert page.evaluate(CONTRASTS) == []
    page.reload()
    assert page.evaluate(ground) == dark
    page.get_by_label("Colours").select_option("auto")
    assert page.evaluate(ground) == light


@pytest.mark.parametrize("width", [360, 768])
def test_a_small_screen_scrolls_down_only(browser: Browser, gateway: Gateway, width: int) -> None:
    viewport = {"width": width, "height": 740}
    with opened(browser, f"{gateway.url}/dashboard", None, viewport=viewport, has_touch=True) as page:
        fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert page.evaluate(fits)
        sign_in(page, gateway.admin_key)
        for summary in page.locator("summary").all():
            summary.click()
        choice(page, "Range").select_option("custom")
        assert page.evaluate(fits)
        small = page.evaluate(
            """() => [...document.querySelectorAll("button, select, input, summary")]
                .filter((node) => node.checkVisibility())
                .map((node) => [node.outerHTML.slice(0, 60), node.getBoundingClientRect().height])
                .filter(([, height]) => height < 24)"""
        )
        assert small == []
        page.locator("[data-chart=spend] [role=img]").tap(position={"x": 200, "y": 80})
        expect(page.locator("[data-chart=spend] .tip")).to_be_visible()
        assert page.evaluate(fits)


def test_nothing_moves_for_whoever_wants_it_still(browser: Browser, gateway: Gateway) -> None:
    with opened(browser, f"{gateway.url}/dashboard", gateway.admin_key, reduced_motion="reduce") as page:
        assert page.evaluate("document.getAnimations().length") == 0
    with opened(browser, f"{gateway.url}/dashboard", gateway.admin_key, reduced_motion="no-preference") as page:
        assert page.evaluate("document.getAnimations().length") > 0


def test_a_filter_that_takes_nothing_says_so(browser: Browser, gateway: Gateway) -> None:
    with opened(browser, f"{gateway.url}/dashboard?caller=nobody", gateway.admin_key) as page:
        expect(page.locator("#empty")).to_contain_text("Clear a filter")
        expect(page.locator("#charts")).to_be_hidden()
        assert tile(page, "Requests") == "0"
        page.get_by_role("button", name="Clear filters").click()
        expect(page.locator("#charts")).to_be_visible()


def test_an_address_that_makes_no_sense_is_told_and_can_be_mended(browser: Browser, gateway: Gateway) -> None:
    with opened(browser, f"{gateway.url}/dashboard?range=forever", None) as page:
        page.get_by_label("Admin key", exact=True).fill(gateway.admin_key)
        page.get_by_role("button", name="Show the figures").click()
        expect(page.get_by_role("alert").filter(has_text="there is no range 'forever'")).to_be_visible()
        choice(page, "Range").select_option("6h")
        page.locator("#tiles .value").first.wait_for()
        expect(page.get_by_role("alert").filter(has_text="forever")).to_be_hidden()


def test_a_gateway_that_is_gone_leaves_the_figures_and_is_found_again(
    browser: Browser, tmp_path: Path, claude: AnthropicApi
) -> None:
    with (
        serving_gateway(tmp_path, upstream_url=claude.url, upstream_key=claude.key) as gateway,
        opened(browser, f"{gateway.url}/dashboard", gateway.admin_key) as page,
    ):
        expect(page.locator("#empty")).to_contain_text("No request has come")
        port = gateway.port
        gateway.kill()
        problem = page.get_by_role("alert").filter(has_text="The gateway cannot be reached. What is shown is older.")
        expect(problem).to_be_visible(timeout=20_000)
        expect(page.locator("#tiles")).to_be_visible()
        gateway.start(port=port)
        problem.get_by_role("button", name="Try again").click()
        expect(problem).to_be_hidden(timeout=20_000)
