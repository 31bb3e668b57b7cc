from __future__ import annotations

from dataclasses import replace

import pytest
from doubles.fake_driver import FakeDriver

from inference_service import reaching
from inference_service.contracts import LaunchSpec, ServiceEntry
from inference_service.errors import ToolError
from inference_service.registry import Registry


def entry() -> ServiceEntry:
    return ServiceEntry("job-1", "smollm2", "fake", "http://localhost:9001", started_at="2026-11-24T10:00:00+00:00")


def test_a_tunnel_that_was_opened_again_is_known_to_the_registry() -> None:
    Registry().write(entry())
    driver = FakeDriver(
        on_reach=lambda old: replace(old, host_url="http://localhost:9002", extras={"tunnel": {"pid": 7}})
    )
    assert reaching.reachable(entry(), driver, print).host_url == "http://localhost:9002"
    noted = Registry().read().services["job-1"]
    assert (noted.host_url, noted.extras) == ("http://localhost:9002", {"tunnel": {"pid": 7}})


def test_a_service_that_was_stopped_meanwhile_does_not_come_back_into_the_registry() -> None:
    driver = FakeDriver(on_reach=lambda old: replace(old, host_url="http://localhost:9002"))
    reaching.reachable(entry(), driver, print)
    assert Registry().read().services == {}


def test_nothing_is_written_when_the_way_is_as_it_was() -> None:
    reaching.reachable(entry(), FakeDriver(), print)
    assert not Registry().path.exists()


def test_what_cannot_be_reached_is_an_error() -> None:
    def refuse(_entry: ServiceEntry) -> ServiceEntry:
        raise ToolError("no_address", "no address yet")

    with pytest.raises(ToolError, match="no address yet"):
        reaching.reachable(entry(), FakeDriver(on_reach=refuse), print)


def test_a_reservation_says_where_on_the_platform_its_service_will_be() -> None:
    spec = LaunchSpec(
        "job-1", "smollm2", "fake", "/m", "image", "true", {}, (), 0, 8080, platform_options={"namespace": "team"}
    )
    assert Registry().reserve(spec, needs_host_port=False).extras == {"platform_options": {"namespace": "team"}}
