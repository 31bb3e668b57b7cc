"""Errors of one format as those of the other: the SDKs raise what they raise for their own vendor's."""

from __future__ import annotations

import json

import anthropic
import openai
import pytest
import sdk_streams

from inference_service.gateway.translation import errors


def anthropic_error(kind: str, message: str = "why") -> bytes:
    return json.dumps(errors.anthropic(kind, message, "req_1")).encode()


@pytest.mark.parametrize(
    ("status", "kind", "raised", "told_status"),
    [
        (400, "invalid_request_error", openai.BadRequestError, 400),
        (401, "authentication_error", openai.AuthenticationError, 401),
        (403, "permission_error", openai.PermissionDeniedError, 403),
        (404, "not_found_error", openai.NotFoundError, 404),
        (413, "request_too_large", openai.APIStatusError, 413),
        (429, "rate_limit_error", openai.RateLimitError, 429),
        (500, "api_error", openai.InternalServerError, 500),
        (529, "overloaded_error", openai.InternalServerError, 503),
    ],
)
def test_claudes_errors_for_the_openai_sdk(
    status: int, kind: str, raised: type[openai.APIStatusError], told_status: int
) -> None:
    translated_status, body = errors.body("openai", status, anthropic_error(kind))
    with pytest.raises(raised, match="why") as caught:
        sdk_streams.openai_client(translated_status, body).chat.completions.create(model="m", messages=[])
    assert (caught.value.status_code, caught.value.code) == (told_status, kind)
    assert caught.value.type


@pytest.mark.parametrize(
    ("status", "raised", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (413, anthropic.APIStatusError, "request_too_large"),
        (422, anthropic.UnprocessableEntityError, "invalid_request_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (503, anthropic.InternalServerError, "overloaded_error"),
    ],
)
def test_a_services_errors_for_the_anthropic_sdk(
    status: int, raised: type[anthropic.APIStatusError], kind: str
) -> None:
    upstream = json.dumps(errors.openai("some_error", "why", param="messages")).encode()
    translated_status, body = errors.body("anthropic", status, upstream, request_id="req_7")
    with pytest.raises(raised, match="why") as caught:
        sdk_streams.anthropic_client(translated_status, body).messages.create(model="m", max_tokens=1, messages=[])
    assert caught.value.status_code == status
    assert json.loads(body) == {"type": "error", "error": {"type": kind, "message": "why"}, "request_id": "req_7"}


@pytest.mark.parametrize(
    ("upstream", "message"),
    [
        (b'{"error":{"message":"m","type":"t","param":"p","code":null}}', "m"),
        (b'{"type":"error","error":{"type":"t","message":"m"}}', "m"),
        (b'{"object":"error","message":"m","type":"t","param":"p","code":400}', "m"),
        (b'{"error":"model_loading","message":"not yet"}', "not yet"),
        (b'{"error":"model_loading"}', "model_loading"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":[{"loc":["body"]}]}', '[{"loc":["body"]}]'),
        (b'{"error":{}}', '{"error":{}}'),
        (b"<html>\n <h1>502 Bad Gateway</h1>\n</html>", "<html> <h1>502 Bad Gateway</h1> </html>"),
        (b"", "the upstream gave no reason"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"[1]", "[1]"),
    ],
)
def test_whatever_the_upstream_said_is_the_message(upstream: bytes, message: str) -> None:
    for shape in ("openai", "anthropic"):
        _, body = errors.body(shape, 502, upstream)
        assert json.loads(body)["error"]["message"] == message


def test_a_page_of_html_is_cut() -> None:
    _, body = errors.body("openai", 502, b"<p>" * 100_000)
    assert len(body) < 3_000


def test_the_parameter_is_passed_on() -> None:
    _, body = errors.body("openai", 400, b'{"error":{"message":"m","type":"t","param":"temperature"}}')
    assert json.loads(body)["error"]["param"] == "temperature"
