"""Tags, settings, and refusals in the words of either API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.errors import BadInput
from inference_service.gateway import refusals, server, settings, tags
from inference_service.gateway.refusals import Refusal


def test_tags_are_pairs_separated_by_commas() -> None:
    assert tags.parse(b"feature=search, run=42,,ratio=a/b:c@d+e f") == {
        "feature": "search",
        "run": "42",
        "ratio": "a/b:c@d+e f",
    }


@pytest.mark.parametrize("value", [b"nonsense", b"a=b=c", b"=x", b"a=<script>", b"a=\xff", b"k" * 41 + b"=v"])
def test_a_malformed_tag_is_refused_before_anything_is_spent(value: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        tags.parse(value)
    assert caught.value.status == 400


def test_more_tags_than_a_report_can_show_are_refused() -> None:
    with pytest.raises(Refusal, match="at most 10"):
        tags.parse(b",".join(b"k%d=v" % number for number in range(11)))


@given(st.binary(max_size=300))
def test_whatever_is_sent_as_tags_is_read_or_refused(value: bytes) -> None:
    try:
        found = tags.parse(value)
    except Refusal:
        return
    assert len(found) <= tags.MOST
    assert all(text.isprintable() for pair in found.items() for text in pair)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 502, 503, 504])
def test_a_refusal_is_an_error_in_either_shape(status: int) -> None:
    refusal = Refusal(status, "some_word", "what happened", param="model", fix="what to do")
    openai = json.loads(refusals.body(refusal, "openai", "req_1"))["error"]
    assert openai["message"] == "what happened; what to do"
    assert (openai["code"], openai["param"]) == ("some_word", "model")
    anthropic = json.loads(refusals.body(refusal, "anthropic", "req_1"))
    assert anthropic["type"] == "error"
    assert anthropic["request_id"] == "req_1"
    assert anthropic["error"]["message"] == "what happened; what to do"


@pytest.mark.parametrize(("seconds", "header"), [(0.2, b"1"), (1.0, b"1"), (1.01, b"2"), (59.5, b"60")])
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, header: bytes) -> None:
    assert Refusal(429, "x", "y", retry_after=seconds).headers() == [(b"retry-after", header)]


def test_keys_do_not_show_in_the_settings() -> None:
    found = settings.of_environment(
        {
            "ANTHROPIC_API_KEY": "sk-ant-secret-of-the-vendor",
            "TAO_GATEWAY_ADMIN_KEY": "admin-secret-0123456789",
            "TAO_GATEWAY_CALLER_KEY": "owner-secret-0123456789",
        }
    )
    assert found.upstream_key == "sk-ant-secret-of-the-vendor"
    assert "secret" not in repr(found)


@pytest.mark.parametrize("name", ["TAO_GATEWAY_ADMIN_KEY", "TAO_GATEWAY_CALLER_KEY"])
def test_a_key_that_can_be_guessed_is_refused(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        settings.of_environment({name: "hunter2"})
    assert "hunter2" not in caught.value.message


def test_the_database_is_the_request_log_unless_another_is_named(tmp_path: Path) -> None:
    log = tmp_path / "requests.db"
    assert settings.of_environment({"TAO_INF_REQUEST_LOG": str(log)}).database == f"sqlite:///{log}"
    assert settings.of_environment({"TAO_GATEWAY_DATABASE": "postgresql://h/d"}).database == "postgresql://h/d"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_without_keys_only_this_machine_is_served(host: str) -> None:
    with pytest.raises(BadInput):
        server.require_safe(settings.Settings(host=host, no_auth=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": -1},
        {"port": 65536},
        {"workers": 0},
        {"drain_seconds": float("nan")},
        {"drain_seconds": -1.0},
        {"notice_seconds": float("inf")},
    ],
    ids=str,
)
def test_numbers_that_nothing_can_be_served_with_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        settings.Settings(**wrong)


def test_a_host_that_does_not_exist_is_not_taken_for_a_port_that_is_taken() -> None:
    with pytest.raises(BadInput, match=r"no-such-host\.invalid"):
        server.listen("no-such-host.invalid", 0, shared=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_without_keys_this_machine_is_served(host: str) -> None:
    server.require_safe(settings.Settings(host=host, no_auth=True))
