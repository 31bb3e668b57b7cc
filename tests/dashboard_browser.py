"""A real Chromium for the dashboard's tests, and what is asked of a page by all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Locator, Page, Request, sync_playwright
from support import need_engine

CHROMIUM = Path("/usr/bin/chromium")
_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium for the length of the block. Skips the test where there is none (REQUIRE_E2E: chromium)."""
    need_engine("chromium", CHROMIUM.exists(), f"there is no {CHROMIUM}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=_OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, url: str, key: str | None, **context: Any) -> Iterator[Page]:
    """The page at that address, signed in with the key if there is one. Fails if the page's script does, or if it asks
    anybody but its own gateway for anything."""
    origin = "/".join(url.split("/")[:3])
    faults: list[str] = []

    def refuse(dialog: Dialog) -> None:
        faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def listen(said: ConsoleMessage) -> None:
        if "Content Security" in said.text or "TrustedHTML" in said.text:
            faults.append(said.text)

    def watch(asked: Request) -> None:
        if not asked.url.startswith((origin, "data:")):
            faults.append(f"asked {asked.url}")

    made = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
    try:
        page = made.new_page()
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.on("dialog", refuse)
        page.on("console", listen)
        page.on("request", watch)
        page.goto(url)
        if key is not None:
            sign_in(page, key)
        yield page
        assert not faults, faults
    finally:
        made.close()


def sign_in(page: Page, key: str) -> None:
    """Give the admin key and wait for the figures."""
    page.get_by_label("Admin key", exact=True).fill(key)
    page.get_by_role("button", name="Show the figures").click()
    page.locator("#tiles .value").first.wait_for()


def choice(page: Page, name: str) -> Locator:
    """The filter of that name."""
    return page.get_by_role("combobox", name=name, exact=True)


def tile(page: Page, title: str) -> str:
    """What the tile of that title says."""
    return page.locator("#tiles > div", has=page.locator("dt", has_text=title)).locator(".value").inner_text()


# WCAG 2.2: relative luminance and contrast; what is behind a text is the first opaque ground above it.
CONTRASTS = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const ground = rgb(getComputedStyle(at).backgroundColor);
      if (ground.length === 3 || ground[3] === 1) return ground;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const parent = texts.currentNode.parentElement;
    const text = texts.currentNode.textContent.trim();
    if (!text || !parent.checkVisibility() || parent.closest(".hidden, script, style, option")) continue;
    const style = getComputedStyle(parent);
    const ink = rgb(parent instanceof SVGElement ? style.fill : style.color);
    const [low, high] = [light(ink), light(behind(parent))].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (contrast < (large ? 3 : 4.5)) poor.push(`${contrast.toFixed(2)}: ${text.slice(0, 40)}`);
  }
  for (const mark of document.querySelectorAll(".chart path[fill], .chart path.line, .swatch, .meter i")) {
    const style = getComputedStyle(mark);
    const filled = mark instanceof SVGElement ? style.fill : style.backgroundColor;
    const ink = rgb(mark.matches(".line") ? style.stroke : filled);
    const [low, high] = [light(ink), light(behind(mark.parentElement))].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 3) poor.push(`${contrast.toFixed(2)}: a mark ${ink}`);
  }
  return poor;
}"""
