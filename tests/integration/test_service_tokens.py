"""A service that wants a token, whatever its platform: the scripts find it by its name in the registry."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from doubles.lepton_api import LeptonApi
from services import register
from support import run_script

ASK = ("--prompt", "hello", "--accept-defaults")


class Guarded:
    """A service behind a gateway that wants `token` of every request."""

    def __init__(self, lepton: LeptonApi) -> None:
        self.job_id, self.token = str(uuid.uuid4()), "the-token-of-the-service"
        body = {
            "metadata": {"name": "guarded"},
            "spec": {
                "container": {"image": "i", "command": ["x"]},
                "resource_requirement": {"resource_shape": "cpu.medium"},
                "envs": [{"name": "TAO_API_JOB_ID", "value": self.job_id}],
                "api_tokens": [{"value": self.token}],
            },
        }
        headers = {"Authorization": f"Bearer {lepton.token}"}
        assert requests.post(f"{lepton.url}/deployments", json=body, headers=headers, timeout=10).status_code == 201
        self.endpoint = lepton.only()
        self.url = f"{lepton.origin}/at/guarded"

    def register(self, **auth: str) -> None:
        """Register it as a service of this machine, with these extras."""
        register(self.job_id, "smollm2", self.url)
        file = Path(os.environ["TAO_INF_MS_STATE_FILE"])
        state = json.loads(file.read_text())
        state[self.job_id] |= auth
        file.write_text(json.dumps(state))

    def statuses(self) -> set[int]:
        """What its gateway has answered."""
        return {status for _path, status in self.endpoint.requests}


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    with LeptonApi() as lepton:
        yield Guarded(lepton)


@pytest.mark.parametrize("by", ["auth_env", "auth_file"])
def test_readiness_and_requests_carry_the_token(
    by: str, guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(guarded.token)
    monkeypatch.setenv("GUARDED_TOKEN", guarded.token)
    guarded.register(**{by: "GUARDED_TOKEN" if by == "auth_env" else str(file)})
    assert run_script("wait_ready", "--job-id", guarded.job_id, "--timeout", "20").document["ready"] is True
    done = run_script("send_request", "--job-id", guarded.job_id, *ASK)
    assert done.document["content"] == "You asked: hello"
    assert guarded.statuses() == {200}
    assert guarded.token not in done.stdout + done.stderr
    assert guarded.token not in run_script("registry", "list").stdout


def test_a_registration_names_where_the_token_is_and_can_change_that(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARDED_TOKEN", guarded.token)
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(guarded.token)
    register(guarded.job_id, "smollm2", guarded.url)
    service = ("--job-id", guarded.job_id, "--network-arch", "smollm2", "--platform", "local-process")
    write = (*service, "--host-url", guarded.url)
    for source in (("--auth-env", "GUARDED_TOKEN"), ("--auth-file", str(file)), ("--auth-env", "GUARDED_TOKEN"), ()):
        run_script("registry", "write", *write, *source)
        assert run_script("send_request", "--job-id", guarded.job_id, *ASK).document["status"] == 200
    file.unlink()
    run_script("registry", "write", *write, "--auth-file", str(file))
    error = run_script("send_request", "--job-id", guarded.job_id, *ASK, expect=1).document["error"]
    assert error["type"] == "token_missing"
    refused = run_script("registry", "write", *write, "--auth-env", "sk-a-token-itself", expect=2)
    assert refused.document["error"]["type"] == "bad_auth_env"
    assert "sk-a-token" not in refused.stdout + refused.stderr


def test_a_token_that_is_not_there_is_an_error_and_nothing_is_sent(guarded: Guarded) -> None:
    guarded.register(auth_env="GUARDED_TOKEN")
    for script, arguments in (("wait_ready", ()), ("send_request", ASK)):
        error = run_script(script, "--job-id", guarded.job_id, *arguments, expect=1).document["error"]
        assert error["type"] == "token_missing"
        assert error["fix"] == "export GUARDED_TOKEN=…"
    assert guarded.statuses() == set()


def test_a_file_that_others_can_read_is_an_error_and_nothing_is_sent(guarded: Guarded, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(guarded.token)
    file.chmod(0o644)
    guarded.register(auth_file=str(file))
    error = run_script("send_request", "--job-id", guarded.job_id, *ASK, expect=1).document["error"]
    assert error["type"] == "token_file_unsafe"
    assert guarded.statuses() == set()


def test_a_service_that_refuses_us_is_not_waited_for_forever(guarded: Guarded) -> None:
    guarded.register()
    error = run_script("wait_ready", "--job-id", guarded.job_id, "--timeout", "90", expect=1).document["error"]
    assert error["type"] == "unauthorized"
    assert "wants a token, and none is registered" in error["message"]


def test_a_token_that_is_refused_for_a_moment_only_is_waited_for(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setenv("GUARDED_TOKEN", guarded.token)
    guarded.register(auth_env="GUARDED_TOKEN")
    guarded.endpoint.tokens = ["not-known-everywhere-yet"]
    later = threading.Timer(3, lambda: guarded.endpoint.tokens.append(guarded.token))
    later.start()
    assert run_script("wait_ready", "--job-id", guarded.job_id, "--timeout", "60").document["ready"] is True
    assert guarded.statuses() == {200, 401}
