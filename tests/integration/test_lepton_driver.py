"""lepton's driver against whatever Lepton may answer: every state, errors, lost answers, a workspace that is silent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lepton_names as names
import pytest
from doubles.lepton_api import LeptonApi
from lepton_support import BOTH, driver, silent, spec, token_files, workspace

from inference_service.contracts import LaunchSpec, ServiceEntry, StartedService, State
from inference_service.errors import BadInput, ToolError

PLANTED = "hf_planted_secret_value_4711"


@pytest.fixture(params=[False, True], ids=["deployments", "endpoints"])
def lepton(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LeptonApi]:
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    with workspace(monkeypatch, tmp_path, new_routes=request.param, deleting_seconds=0.05) as there:
        yield there


def entry_of(started: StartedService) -> ServiceEntry:
    return ServiceEntry(
        started.job_id,
        started.network_arch,
        "lepton",
        started.host_url,
        platform_job_id=started.platform_job_id,
        extras=started.extras,
    )


def reservation_of(wanted: LaunchSpec) -> ServiceEntry:
    return ServiceEntry(wanted.job_id, wanted.network_arch, "lepton", "", "starting")


def nothing_is_left(lepton: LeptonApi) -> bool:
    there = [each for each in lepton.endpoints.values() if each.deleted is None]
    return (there, lepton.secrets, token_files()) == ([], {}, [])


@pytest.mark.parametrize(
    ("state", "expected", "reason"),
    [
        ("Ready", State.RUNNING, ""),
        ("Updating", State.RUNNING, "updating"),
        ("Starting", State.PENDING, "starting"),
        ("Not Ready", State.PENDING, "not ready"),
        ("Stopping", State.EXITED, "the endpoint is stopping"),
        ("Stopped", State.EXITED, "the endpoint is stopped"),
        ("Deleting", State.EXITED, "the endpoint is deleting"),
        ("Error", State.FAILED, "the endpoint has failed"),
        ("SomethingNew", State.PENDING, "unk"),
    ],
)
def test_every_state_of_an_endpoint_means_something(
    state: str, expected: State, reason: str, lepton: LeptonApi
) -> None:
    started = driver().start(spec(), silent)
    lepton.only().state = state
    status = driver().status(entry_of(started))
    assert (status.state, status.reason) == (expected, reason)


def test_what_an_endpoint_waits_for_is_told(lepton: LeptonApi) -> None:
    started = driver().start(spec(), silent)
    endpoint = lepton.only()
    endpoint.issues = [("NoCapacity", "0/12 nodes are available: Insufficient nvidia.com/gpu")]
    status = driver().status(entry_of(started))
    assert status.state is State.PENDING
    assert "no machine of that shape is free (NoCapacity)" in status.reason
    endpoint.issues = [("Queueing", "position 3")]
    assert "it waits in the queue (Queueing)" in driver().status(entry_of(started)).reason
    endpoint.issues = [("ConfigError", "no such image")]
    assert driver().status(entry_of(started)).state is State.FAILED


def test_a_container_that_ends_again_and_again_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with workspace(monkeypatch, tmp_path) as lepton:
        started = driver().start(spec(), silent)
        lepton.only().terminations = [137]
        once = driver().status(entry_of(started))
        assert (once.state, "exit code 137" in once.reason) == (State.PENDING, True)
        lepton.only().terminations = [137, 1]
        twice = driver().status(entry_of(started))
        assert twice.state is State.FAILED
        assert "ended 2 time(s), the last with exit code 1" in twice.reason


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503])
@pytest.mark.parametrize("path", ["/usersecrets", "/(deployments|endpoints)"])
def test_a_start_that_lepton_refuses_leaves_nothing(path: str, status: int, lepton: LeptonApi) -> None:
    lepton.fault("POST", path, status=status)
    with pytest.raises(ToolError) as failed:
        driver().start(spec(secret_env=("HF_TOKEN",)), silent)
    assert failed.value.fix
    assert PLANTED not in str(failed.value.document())
    assert lepton.token not in str(failed.value.document())
    assert nothing_is_left(lepton)


def test_a_create_whose_answer_is_lost_is_found_and_gets_a_token_that_we_know(lepton: LeptonApi) -> None:
    lepton.fault("POST", "/(deployments|endpoints)", drop=True, done=True)
    started = driver().start(spec(), silent)
    (file,) = token_files()
    assert lepton.only().tokens == [file.read_text().strip()]
    assert started.extras["auth_file"] == str(file)
    assert sum(call.path in ("/deployments", "/endpoints") for call in lepton.calls if call.method == "POST") == 1


def test_a_create_that_never_arrived_is_an_error_and_leaves_nothing(lepton: LeptonApi) -> None:
    lepton.fault("POST", "/(deployments|endpoints)", drop=True)
    with pytest.raises(ToolError) as failed:
        driver().start(spec(secret_env=("HF_TOKEN",)), silent)
    assert failed.value.type == "lepton_unreachable"
    assert nothing_is_left(lepton)


def test_an_endpoint_of_that_name_is_neither_replaced_nor_removed(lepton: LeptonApi) -> None:
    wanted = spec(secret_env=("HF_TOKEN",))
    driver().start(wanted, silent)
    secrets, tokens = dict(lepton.secrets), list(lepton.only().tokens)
    with pytest.raises(BadInput) as refused:
        driver().start(wanted, silent)
    assert refused.value.type == "job_id_in_use"
    assert (lepton.secrets, lepton.only().tokens) == (secrets, tokens)
    assert lepton.only().deleted is None


def test_an_address_that_comes_late_is_waited_for(lepton: LeptonApi) -> None:
    lepton.address_seconds = 0.5
    lepton.starting_seconds = 1.0
    said: list[str] = []
    started = driver().start(spec(), lambda progress: said.append(progress.message))
    assert started.host_url.startswith(lepton.origin)
    assert any("waiting for the endpoint's address" in message for message in said)


def test_an_interruption_while_the_address_is_waited_for_leaves_nothing(lepton: LeptonApi) -> None:
    lepton.address_seconds = 60

    def interrupt(progress: Any) -> None:
        if "address" in progress.message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        driver().start(spec(secret_env=("HF_TOKEN",)), interrupt)
    assert nothing_is_left(lepton)


def test_stop_is_idempotent_and_takes_what_a_killed_start_has_left(lepton: LeptonApi) -> None:
    wanted = spec(secret_env=("HF_TOKEN",))
    lepton.secrets |= {names.secret_name(wanted.job_id, "HF_TOKEN"): PLANTED, "SOMEBODY_ELSES": "x"}
    driver().stop(reservation_of(wanted))
    driver().stop(reservation_of(wanted))
    assert lepton.secrets == {"SOMEBODY_ELSES": "x"}


def test_stop_keeps_the_secrets_of_an_endpoint_that_could_not_be_deleted(lepton: LeptonApi) -> None:
    started = driver().start(spec(secret_env=("HF_TOKEN",)), silent)
    lepton.fault("DELETE", "/(deployments|endpoints)/.*", status=500)
    with pytest.raises(ToolError, match="Lepton failed"):
        driver().stop(entry_of(started))
    assert len(lepton.secrets) == len(token_files()) == 1
    driver().stop(entry_of(started))
    assert nothing_is_left(lepton)


def test_a_name_of_another_tools_job_is_not_success(lepton: LeptonApi) -> None:
    foreign = ServiceEntry(spec().job_id, "cosmos-rl", "lepton", "https://x", platform_job_id="some-batch-job")
    with pytest.raises(ToolError) as failed:
        driver().stop(foreign)
    assert failed.value.type == "not_an_endpoint"


def test_discover_is_for_this_registry_and_this_machine(lepton: LeptonApi, monkeypatch: pytest.MonkeyPatch) -> None:
    started = driver().start(spec(), silent)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "another-machine")
        theirs = driver().start(spec(), silent)
    with monkeypatch.context() as other:
        other.setenv("TAO_INF_MS_STATE_FILE", "/nowhere/registry.json")
        driver().start(spec(), silent)
    stopping = driver().start(spec(), silent)
    lepton.endpoints[str(stopping.platform_job_id)].state = "Stopped"
    (found,) = driver().discover()
    assert found == started
    with pytest.raises(BadInput, match="another registry"):
        driver().stop(ServiceEntry(theirs.job_id, "cosmos-rl", "lepton", "", "starting"))
    assert len(lepton.endpoints) == 4


@pytest.mark.parametrize("times", [1, 99])
def test_a_workspace_that_cannot_be_asked_is_not_taken_for_an_old_one(times: int, lepton: LeptonApi) -> None:
    started = driver().start(spec(), silent)
    again = driver()
    lepton.fault("GET", "/workspace", status=503, times=times)
    reset_client()
    status = again.status(entry_of(started))
    assert status.state is (State.RUNNING if times == 1 else State.UNKNOWN)
    lepton.faults.clear()
    assert again.status(entry_of(started)).state is State.RUNNING


def reset_client() -> None:
    """A new process asks again which generation of the API a workspace speaks."""
    from leptonai.api.v2.client import reset_new_deployment_api_flag_cache

    reset_new_deployment_api_flag_cache()


def test_an_unreachable_workspace_is_said_with_its_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with workspace(monkeypatch, tmp_path):
        pass
    with pytest.raises(ToolError) as failed:
        driver().discover()
    assert failed.value.type == "lepton_unreachable"
    assert "connection refused" in failed.value.message


@BOTH
def test_a_token_that_lepton_still_tells_is_kept_and_not_replaced(
    new_routes: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with workspace(monkeypatch, tmp_path, new_routes=new_routes) as lepton:
        started = driver().start(spec(), silent)
        before = list(lepton.only().tokens)
        lepton.shows_tokens = True
        token_files()[0].unlink()
        driver().reach(entry_of(started), silent)
        assert lepton.only().tokens == before == [token_files()[0].read_text().strip()]


@BOTH
def test_a_disk_that_is_full_when_the_token_comes_costs_no_endpoint(
    new_routes: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with workspace(monkeypatch, tmp_path, new_routes=new_routes, deleting_seconds=0.05) as lepton:
        import lepton_token

        folder = lepton_token.file_of("x").parent
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.write_text("a file where the folder should be")
        with pytest.raises(ToolError) as failed:
            driver().start(spec(), silent)
        assert failed.value.type == "token_not_kept"
        assert [each for each in lepton.endpoints.values() if each.deleted is None] == []
