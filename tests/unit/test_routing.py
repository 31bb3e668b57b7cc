"""Routing by the three rules of seed 6.0: what is named, the only one, what the user chooses; never `latest`."""

from __future__ import annotations

from typing import Any

import pytest
from registry_support import service

from inference_service import output, routing
from inference_service.contracts import ServiceEntry
from inference_service.errors import BadInput, DecisionNeeded
from inference_service.registry import Snapshot

FIRST = "11111111-aaaa-4000-8000-000000000001"
SECOND = "11111111-bbbb-4000-8000-000000000002"
THIRD = "33333333-cccc-4000-8000-000000000003"


def snapshot(*entries: ServiceEntry) -> Snapshot:
    return Snapshot({entry.job_id: entry for entry in entries}, entries[-1].job_id if entries else None)


def options(raised: pytest.ExceptionInfo[DecisionNeeded]) -> list[dict[str, Any]]:
    (need,) = raised.value.document()["needs"]
    assert need["name"] == "job_id"
    assert need["answer_with"] == "--job-id JOB_ID"
    return list(need["options"])


TWO = snapshot(service(FIRST), service(SECOND, network_arch="smollm2", started_at="2026-11-01T00:00:00+00:00"))


def test_a_job_id_decides_among_several() -> None:
    assert routing.resolve(TWO, job_id=FIRST).job_id == FIRST


def test_an_unknown_job_id_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadInput) as raised:
        routing.resolve(TWO, job_id=THIRD)
    assert raised.value.type == "unknown_job_id"
    assert raised.value.details["job_ids"] == [FIRST, SECOND]


def test_a_job_id_may_be_cut_short_where_it_stays_unique() -> None:
    assert routing.resolve(TWO, job_id=SECOND[:10]).job_id == SECOND


def test_a_prefix_of_several_job_ids_asks_which() -> None:
    with pytest.raises(DecisionNeeded) as raised:
        routing.resolve(TWO, job_id="11111111")
    assert [option["job_id"] for option in options(raised)] == [FIRST, SECOND]


@pytest.mark.parametrize("prefix", ["1111111", "3", "latest"])
def test_less_than_eight_characters_name_nothing(prefix: str) -> None:
    with pytest.raises(BadInput) as raised:
        routing.resolve(snapshot(service(FIRST)), job_id=prefix)
    assert raised.value.type == "unknown_job_id"


def test_job_id_and_arch_have_to_agree() -> None:
    assert routing.resolve(TWO, job_id=SECOND, network_arch="smollm2").job_id == SECOND
    with pytest.raises(BadInput) as raised:
        routing.resolve(TWO, job_id=SECOND, network_arch="cosmos-rl")
    assert raised.value.type == "network_arch_mismatch"


def test_an_arch_with_one_service_decides() -> None:
    assert routing.resolve(TWO, network_arch="cosmos-rl").job_id == FIRST


def test_an_arch_with_several_services_asks_with_their_start() -> None:
    services = snapshot(
        service(FIRST, started_at="a"), service(SECOND, started_at="b"), service(THIRD, network_arch="claude")
    )
    with pytest.raises(DecisionNeeded) as raised:
        routing.resolve(services, network_arch="cosmos-rl")
    assert [(option["job_id"], option["started_at"]) for option in options(raised)] == [(FIRST, "a"), (SECOND, "b")]


def test_an_arch_without_a_service_is_refused_with_the_command_that_starts_one() -> None:
    with pytest.raises(BadInput) as raised:
        routing.resolve(TWO, network_arch="tao-dataservices")
    assert raised.value.type == "no_service"
    assert "start_service.py --network-arch tao-dataservices" in raised.value.fix


def test_an_arch_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(BadInput) as raised:
        routing.resolve(TWO, network_arch="cosmos-lr")
    assert raised.value.type == "unknown_network_arch"


def test_an_arch_of_the_registry_need_not_be_in_our_tables() -> None:
    assert routing.resolve(snapshot(service(FIRST, network_arch="their-own")), network_arch="their-own").job_id == FIRST


def test_the_only_service_gets_what_names_nothing() -> None:
    assert routing.resolve(snapshot(service(FIRST))).job_id == FIRST


def test_two_services_are_never_decided_by_latest() -> None:
    with pytest.raises(DecisionNeeded) as raised:
        routing.resolve(TWO)
    assert options(raised)[1] == {
        "job_id": SECOND,
        "network_arch": "smollm2",
        "host_url": "http://localhost:8080",
        "started_at": "2026-11-01T00:00:00+00:00",
        "status": "running",
    }


def test_no_service_at_all_is_refused_with_the_command_that_starts_one() -> None:
    with pytest.raises(BadInput) as raised:
        routing.resolve(snapshot())
    assert raised.value.type == "no_service"
    assert "start_service.py" in raised.value.fix


def test_a_service_that_is_being_started_steps_back_for_one_that_runs() -> None:
    services = snapshot(service(FIRST, status="starting"), service(SECOND))
    assert routing.resolve(services).job_id == SECOND
    assert routing.resolve(services, job_id=FIRST).job_id == FIRST


def test_a_service_that_is_being_started_is_taken_when_it_is_the_only_one() -> None:
    assert routing.resolve(snapshot(service(FIRST, status="starting"), service(SECOND, status="gone"))).job_id == FIRST


def test_several_that_are_being_started_ask() -> None:
    with pytest.raises(DecisionNeeded) as raised:
        routing.resolve(snapshot(service(FIRST, status="starting"), service(SECOND, status="starting")))
    assert [option["status"] for option in options(raised)] == ["starting", "starting"]


def test_a_service_that_is_gone_is_never_chosen() -> None:
    with pytest.raises(BadInput) as raised:
        routing.resolve(snapshot(service(FIRST, status="gone")))
    assert raised.value.type == "no_service"


def test_a_service_that_is_gone_and_named_is_refused_with_what_cleans_it_up() -> None:
    with pytest.raises(BadInput) as raised:
        routing.resolve(snapshot(service(FIRST, status="gone")), job_id=FIRST)
    assert raised.value.type == "service_gone"
    assert "reconcile --remove-gone" in raised.value.fix


def test_at_a_terminal_the_answer_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "decide", lambda needs: {"job_id": needs[0].options[1]["job_id"]})
    assert routing.resolve_or_ask(TWO).job_id == SECOND


def test_without_a_terminal_nobody_is_asked() -> None:
    with pytest.raises(DecisionNeeded):
        routing.resolve_or_ask(TWO)
