"""Which upstream a `model` means, and what is said where it means none or several."""

from __future__ import annotations

import re
from typing import Any

import pytest

from inference_service.gateway.refusals import ANTHROPIC, OPENAI, Refusal
from inference_service.gateway.routing import Route, RouteTable

FIRST, SECOND, OTHER = "11111111-aaaa", "11111111-bbbb", "22222222-cccc"
UPSTREAM: Any = object()


def service(job_id: str, network_arch: str) -> Route:
    return Route(
        model=f"hf_model://org/{network_arch}",
        network_arch=network_arch,
        platform="local-docker",
        job_id=job_id,
        shape=OPENAI,
        upstream=UPSTREAM,
    )


def vendor(model: str) -> Route:
    return Route(model=model, network_arch="claude", platform=None, job_id=None, shape=ANTHROPIC, upstream=UPSTREAM)


def table(**more: Any) -> RouteTable:
    models = {name: vendor(name) for name in ("claude-a", "claude-b")}
    services = [service(FIRST, "cosmos-rl"), service(SECOND, "cosmos-rl"), service(OTHER, "smollm2")]
    return RouteTable(services, models, own_arch="claude", **more)


def refused(model: object, **more: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        table(**more).resolve(model)
    return caught.value


@pytest.mark.parametrize(
    ("model", "job_id"), [(FIRST, FIRST), ("smollm2", OTHER), ("22222222", OTHER), ("11111111-b", SECOND)]
)
def test_a_job_id_its_beginning_and_an_arch_of_one_service_mean_that_service(model: str, job_id: str) -> None:
    assert table().resolve(model).job_id == job_id


def test_a_model_id_of_the_vendor_means_the_vendor() -> None:
    assert table().resolve("claude-b") == vendor("claude-b")


def test_an_arch_that_several_services_have_is_refused_with_their_job_ids() -> None:
    refusal = refused("cosmos-rl")
    assert (refusal.status, refusal.type, refusal.param) == (400, "ambiguous_model", "model")
    assert FIRST in refusal.message and SECOND in refusal.message and OTHER not in refusal.message


def test_the_beginning_of_several_job_ids_is_refused_with_all_of_them() -> None:
    refusal = refused("11111111")
    assert (refusal.status, refusal.type) == (400, "ambiguous_model")
    assert FIRST in refusal.message and SECOND in refusal.message


@pytest.mark.parametrize("model", ["gpt-9", "2222222", "claude-", "smollm"])
def test_an_unknown_model_is_not_found_and_the_choices_are_listed(model: str) -> None:
    refusal = refused(model)
    assert (refusal.status, refusal.type) == (404, "unknown_model")
    for name in ("claude-a", "claude-b", FIRST, SECOND, OTHER, "smollm2"):
        assert name in refusal.message
    assert not re.search(r"\bcosmos-rl\b", refusal.message), "an arch that is ambiguous is no choice"


@pytest.mark.parametrize("model", [None, "", 7, True, ["claude-a"], {"a": 1}])
def test_no_model_is_no_silent_default(model: object) -> None:
    refusal = refused(model)
    assert (refusal.status, refusal.type) == (400, "invalid_request")
    assert "claude-a" in refusal.message


def test_the_own_arch_means_the_model_that_the_gateway_was_started_for() -> None:
    assert table(own_model="claude-b").resolve("claude").model == "claude-b"


def test_the_own_arch_without_such_a_model_is_ambiguous() -> None:
    refusal = refused("claude")
    assert (refusal.status, refusal.type) == (400, "ambiguous_model")
    assert "claude-a" in refusal.message


def test_what_stands_in_no_list_is_asked_for_before_it_is_refused() -> None:
    dated = {"claude-a-20260101": vendor("claude-a-20260101")}
    assert table(other_vendor_model=dated.get).resolve("claude-a-20260101").model == "claude-a-20260101"


def test_a_name_of_a_megabyte_is_not_repeated() -> None:
    assert len(refused("x" * 1_000_000).message) < 2_000


def test_with_nothing_to_route_to_the_refusal_says_what_to_do() -> None:
    with pytest.raises(Refusal, match="start a service"):
        RouteTable([], {}, own_arch="claude").resolve("claude-a")
