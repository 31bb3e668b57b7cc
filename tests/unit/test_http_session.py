"""The token of a service: where it is read from, where it is sent to, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import requests

from inference_service import http_session
from inference_service.contracts import ServiceEntry
from inference_service.errors import ToolError

JOB = "0b2c7d6e-1111-4222-8333-444455556666"
HTTPS = "https://service.example.com"


def entry(host_url: str = HTTPS, **extras: str) -> ServiceEntry:
    return ServiceEntry(JOB, "cosmos-rl", "lepton", host_url, extras=extras)


def token_file(folder: Path, text: str = "s3cret-token\n", mode: int = 0o600) -> str:
    file = folder / "token"
    file.write_text(text)
    file.chmod(mode)
    return str(file)


def authorization(service: ServiceEntry, url: str | None = None) -> str | None:
    with http_session.session_for(service) as session:
        prepared = session.prepare_request(requests.Request("GET", url or service.host_url + "/x"))
    value = prepared.headers.get("Authorization")
    return None if value is None else str(value)


def test_a_service_without_a_token_gets_none() -> None:
    assert authorization(entry()) is None


def test_the_token_of_a_file_goes_into_the_header_of_each_request(tmp_path: Path) -> None:
    assert authorization(entry(auth_file=token_file(tmp_path))) == "Bearer s3cret-token"


def test_the_token_of_a_variable_goes_into_the_header_of_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_ENDPOINT_TOKEN", "from-the-environment")
    assert authorization(entry(auth_env="MY_ENDPOINT_TOKEN")) == "Bearer from-the-environment"


def test_a_token_that_is_replaced_is_read_again_for_the_next_request(tmp_path: Path) -> None:
    service = entry(auth_file=token_file(tmp_path))
    with http_session.session_for(service) as session:
        token_file(tmp_path, "newer-token")
        prepared = session.prepare_request(requests.Request("GET", HTTPS))
    assert prepared.headers["Authorization"] == "Bearer newer-token"


def test_netrc_does_not_replace_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine service.example.com login me password other\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert authorization(entry(auth_file=token_file(tmp_path))) == "Bearer s3cret-token"


def test_a_token_is_not_sent_without_https_but_to_this_machine(tmp_path: Path) -> None:
    file = token_file(tmp_path)
    with pytest.raises(ToolError, match=r"is not sent to http://service\.example\.com"):
        http_session.session_for(entry("http://service.example.com", auth_file=file))
    assert authorization(entry("http://127.0.0.1:8080", auth_file=file)) == "Bearer s3cret-token"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_can_read_is_refused_with_what_mends_it(mode: int, tmp_path: Path) -> None:
    with pytest.raises(ToolError) as refused:
        http_session.session_for(entry(auth_file=token_file(tmp_path, mode=mode)))
    assert refused.value.type == "token_file_unsafe"
    assert "chmod 600" in refused.value.fix


def test_a_symlink_a_folder_and_a_pipe_are_no_token_files(tmp_path: Path) -> None:
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(token_file(tmp_path))
    os.mkfifo(pipe, 0o600)
    for file in (link, pipe, tmp_path):
        with pytest.raises(ToolError) as refused:
            http_session.session_for(entry(auth_file=str(file)))
        assert refused.value.type in ("token_missing", "token_file_unsafe")


@pytest.mark.parametrize("text", ["", "\n", "two words", "line\nX-Evil: 1", "t\u00f6ken"])
def test_what_is_no_token_is_refused_and_not_repeated(text: str, tmp_path: Path) -> None:
    with pytest.raises(ToolError) as refused:
        http_session.session_for(entry(auth_file=token_file(tmp_path, text)))
    assert refused.value.type == "token_malformed"
    assert "Evil" not in str(refused.value.document())
    assert "words" not in str(refused.value.document())


def test_a_token_that_is_not_there_names_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"tok.*No such file"):
        http_session.session_for(entry(auth_file=str(tmp_path / "tok")))
    with pytest.raises(ToolError, match="MY_ENDPOINT_TOKEN is not set"):
        http_session.session_for(entry(auth_env="MY_ENDPOINT_TOKEN"))


def test_who_is_not_let_in_is_told_which_token_was_refused(tmp_path: Path) -> None:
    error = http_session.refused(entry(auth_env="MY_ENDPOINT_TOKEN"), 403)
    assert error.type == "unauthorized"
    assert "the environment variable MY_ENDPOINT_TOKEN" in error.message
    assert "--auth-env NAME" in http_session.refused(entry(), 401).fix


def gateway(host_url: str, **extras: str) -> ServiceEntry:
    return ServiceEntry(JOB, "claude", "local-docker", host_url, extras=extras)


def headers(service: ServiceEntry) -> dict[str, str]:
    with http_session.session_for(service) as session:
        return dict(session.prepare_request(requests.Request("GET", service.host_url)).headers)


def test_an_arch_that_wants_a_key_of_its_callers_gets_it_beside_the_token_of_the_door_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TAO_GATEWAY_CALLER_KEY", "the-callers-key")
    monkeypatch.setenv("MY_ENDPOINT_TOKEN", "the-doors-token")
    both = headers(gateway(HTTPS, auth_env="MY_ENDPOINT_TOKEN"))
    assert (both["x-api-key"], both["Authorization"]) == ("the-callers-key", "Bearer the-doors-token")
    alone = headers(gateway("http://127.0.0.1:8080"))
    assert alone["x-api-key"] == "the-callers-key"
    assert "Authorization" not in alone
    assert "x-api-key" not in headers(entry())


def test_a_callers_key_is_sent_nowhere_in_the_clear_and_is_named_when_it_is_missing_or_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TAO_GATEWAY_CALLER_KEY", "the-callers-key")
    with pytest.raises(ToolError) as unprotected:
        http_session.session_for(gateway("http://10.0.0.9:8080"))
    assert unprotected.value.type == "token_unprotected"
    refused = http_session.refused(gateway("http://127.0.0.1:8080"), 401)
    assert "the environment variable TAO_GATEWAY_CALLER_KEY" in refused.message
    monkeypatch.delenv("TAO_GATEWAY_CALLER_KEY")
    with pytest.raises(ToolError) as missing:
        http_session.session_for(gateway("http://127.0.0.1:8080"))
    assert missing.value.fix == "export TAO_GATEWAY_CALLER_KEY=…"
    monkeypatch.setenv("TAO_GATEWAY_CALLER_KEY", "two\r\nX-Evil: lines")
    with pytest.raises(ToolError) as malformed:
        http_session.session_for(gateway("http://127.0.0.1:8080"))
    assert malformed.value.type == "token_malformed"
