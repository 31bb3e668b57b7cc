"""Makes docs/dashboard.png, the README's other picture: the dashboard of a real gateway over a made-up day.

.venv/bin/python docs/make_dashboard_png.py
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

SKILL = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(SKILL / "scripts"), str(SKILL / "tests")]

import dashboard_log  # noqa: E402
import requests  # noqa: E402
from dashboard_browser import chromium, opened  # noqa: E402
from doubles.anthropic_api import AnthropicApi  # noqa: E402
from gateway_process import MESSAGES, serving_gateway  # noqa: E402
from playwright.sync_api import FloatRect  # noqa: E402

from inference_service import sql  # noqa: E402

SIZE = {"width": 1240, "height": 1200}
LIVE = [
    (caller[0], model[0]) for caller, model in zip(dashboard_log.CALLERS[:3], dashboard_log.MODELS[:3], strict=True)
]


@contextlib.contextmanager
def asking(url: str, keys: dict[str, str]) -> Iterator[None]:
    """Requests that are under way for as long as the picture takes."""

    def ask(caller: str, model: str) -> None:
        prompt = {"role": "user", "content": "Tell [[words=400; token_delay=0.03]]"}
        body = {"model": model, "max_tokens": 1000, "stream": True, "messages": [prompt]}
        with requests.post(
            url + MESSAGES, headers={"x-api-key": keys[caller]}, json=body, stream=True, timeout=60
        ) as got:
            for _ in got.iter_content(None):
                pass

    threads = [threading.Thread(target=ask, args=one) for one in LIVE]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()


def main() -> None:
    """Fill a log, serve it, look at it, save the picture."""
    with tempfile.TemporaryDirectory() as name, AnthropicApi() as vendor:
        folder = Path(name)
        database = sql.open(sql.sqlite_url(folder / "state" / "requests.db"))
        keys = dashboard_log.fill(database, 9000)
        database.close()
        with (
            serving_gateway(folder, upstream_url=vendor.url, upstream_key=vendor.key, callers={}) as gateway,
            chromium() as browser,
            asking(gateway.url, keys),
            opened(
                browser,
                f"{gateway.url}/dashboard",
                gateway.admin_key,
                viewport=SIZE,
                device_scale_factor=1.5,
                color_scheme="light",
            ) as page,
        ):
            page.locator("[data-table=live] tbody tr").nth(len(LIVE) - 1).wait_for()
            page.evaluate("document.activeElement.blur()")
            end = page.locator("#charts").evaluate("(node) => node.getBoundingClientRect().bottom")
            clip = FloatRect(x=0, y=0, width=SIZE["width"], height=end + 16)
            page.screenshot(path=str(SKILL / "docs" / "dashboard.png"), clip=clip)


if __name__ == "__main__":
    main()
