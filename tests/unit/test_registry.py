"""The registry keeps everything that is put into it, by us or by others, and tells the latest running service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from registry_support import launch_spec, service
from support import SCHEMAS

from inference_service import processes, registry_entries
from inference_service.contracts import ServiceEntry, StartedService
from inference_service.errors import BadInput
from inference_service.registry import Registry, reservation_is_dead

DEAD_PROCESS = {"pid": os.getpid(), "started": 1.0}
OURS = {"network_arch", "platform", "host_url", "status", "image", "model_path", "num_gpus", "platform_job_id"}
OURS |= {"host_port", "docker_url", "started_at", "reserved_by", "job_id"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
unknown_keys = st.dictionaries(st.text().filter(lambda key: key not in OURS), json_values, max_size=3)
job_ids = st.text(min_size=1).filter(lambda job_id: job_id != "latest")
optional_text = st.none() | st.text()
entries = st.builds(
    ServiceEntry,
    job_id=job_ids,
    network_arch=st.text(),
    platform=st.text(),
    host_url=st.text(),
    status=st.sampled_from(["starting", "running", "gone"]),
    image=st.text(),
    model_path=st.text(),
    num_gpus=st.integers(0, 16),
    platform_job_id=optional_text,
    host_port=st.none() | st.integers(1, 65535),
    docker_url=optional_text,
    started_at=st.text() | st.datetimes().map(lambda moment: moment.isoformat() + "+00:00"),
    reserved_by=st.none() | st.just({"pid": 1, "started": 2.5}),
    extras=unknown_keys,
)


def content(registry: Registry) -> dict[str, Any]:
    document = json.loads(registry.path.read_text())
    assert isinstance(document, dict)
    return document


def started(job_id: str, **fields: Any) -> StartedService:
    known: dict[str, Any] = {
        "network_arch": "cosmos-rl",
        "platform": "local-docker",
        "host_url": "http://localhost:9000",
    }
    return StartedService(job_id=job_id, **{**known, **fields})


@given(entries)
def test_any_entry_comes_back_from_json_as_it_was(entry: ServiceEntry) -> None:
    value = json.loads(json.dumps(registry_entries.to_json(entry)))
    assert registry_entries.from_json(entry.job_id, value) == entry


@settings(max_examples=25, deadline=None)
@given(entries)
def test_any_entry_comes_back_from_the_file_as_it_was(entry: ServiceEntry) -> None:
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder) / "registry.json")
        registry.write(entry)
        assert registry.read().services == {entry.job_id: entry}


@given(st.dictionaries(st.text(), json_values))
def test_whatever_json_object_is_in_the_file_can_be_read(state: dict[str, Any]) -> None:
    registry_entries.services(state)
    registry_entries.held_ports(state)
    assert registry_entries.latest(state) is None or registry_entries.latest(state) in state


def test_no_file_is_an_empty_registry_and_makes_none() -> None:
    registry = Registry()
    assert registry.read().services == {}
    assert registry.read().latest is None
    assert not registry.path.exists()


def test_a_reservation_has_what_others_need_to_see_and_a_port() -> None:
    entry = Registry().reserve(launch_spec("a"), needs_host_port=True)
    assert entry.status == "starting"
    assert entry.host_port is not None and entry.host_port >= 8080
    assert entry.host_url == f"http://localhost:{entry.host_port}"
    assert entry.reserved_by == processes.this_process()
    assert Registry().read().services == {"a": entry}


def test_a_platform_with_addresses_of_its_own_gets_no_port() -> None:
    assert Registry().reserve(launch_spec("a"), needs_host_port=False).host_port is None


def test_two_reservations_never_share_a_port() -> None:
    first, second = (Registry().reserve(launch_spec(job_id), needs_host_port=True) for job_id in "ab")
    assert first.host_port != second.host_port


def test_a_port_that_was_asked_for_is_the_one_reserved() -> None:
    port = Registry().reserve(launch_spec("a"), needs_host_port=True).host_port
    Registry().remove("a")
    assert Registry().reserve(launch_spec("b", host_port=port), needs_host_port=True).host_port == port


def test_a_port_that_a_service_holds_is_refused_and_nothing_changes() -> None:
    registry = Registry()
    port = registry.reserve(launch_spec("a"), needs_host_port=True).host_port
    before = registry.path.read_bytes()
    with pytest.raises(BadInput) as raised:
        registry.reserve(launch_spec("b", host_port=port), needs_host_port=True)
    assert raised.value.details["held_by"] == "a"
    assert registry.path.read_bytes() == before


def test_ports_written_by_other_tools_are_held_too() -> None:
    registry = Registry()
    free = registry.reserve(launch_spec("a"), needs_host_port=True).host_port
    registry.path.write_text(json.dumps({"theirs": {"host_port": free}}))
    with pytest.raises(BadInput):
        registry.reserve(launch_spec("b", host_port=free), needs_host_port=True)


@pytest.mark.parametrize("status", ["running", "gone"])
def test_a_job_id_is_given_once(status: str) -> None:
    registry = Registry()
    registry.write(service("a", status=status))
    with pytest.raises(BadInput) as raised:
        registry.reserve(launch_spec("a"), needs_host_port=True)
    assert raised.value.type == "job_id_taken"


def test_latest_is_no_job_id() -> None:
    with pytest.raises(BadInput):
        Registry().reserve(launch_spec("latest"), needs_host_port=False)


def test_the_process_that_reserved_moves_to_another_port() -> None:
    registry = Registry()
    first = registry.reserve(launch_spec("a"), needs_host_port=True)
    assert first.host_port is not None
    second = registry.reserve(launch_spec("a"), needs_host_port=True, exclude={first.host_port})
    assert second.host_port is not None and second.host_port > first.host_port
    assert list(registry.read().services) == ["a"]


def test_another_process_may_not_take_over_a_reservation_even_of_a_dead_one() -> None:
    registry = Registry()
    registry.write(service("a", status="starting", reserved_by=DEAD_PROCESS))
    with pytest.raises(BadInput):
        registry.reserve(launch_spec("a"), needs_host_port=True)
    assert registry.read().services["a"].reserved_by == DEAD_PROCESS


def test_the_port_of_a_reservation_whose_process_died_is_free_again_and_its_entry_stays() -> None:
    registry = Registry()
    port = registry.reserve(launch_spec("a"), needs_host_port=True).host_port
    registry.write(replace(registry.read().services["a"], reserved_by=DEAD_PROCESS))
    assert registry.reserve(launch_spec("b", host_port=port), needs_host_port=True).host_port == port
    assert list(registry.read().services) == ["a", "b"]


def test_a_reservation_is_dead_when_its_process_is() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    reserved = service(
        "a", status="starting", reserved_by={"pid": child.pid, "started": processes.started_at(child.pid)}
    )
    assert not reservation_is_dead(reserved)
    child.communicate()
    assert reservation_is_dead(reserved)
    assert not reservation_is_dead(replace(reserved, status="running"))


@pytest.mark.parametrize("reserved_by", [None, {}, {"pid": "1", "started": 1}, {"pid": 1, "started": None}])
def test_a_reservation_that_nobody_holds_is_dead(reserved_by: dict[str, Any] | None) -> None:
    assert reservation_is_dead(service("a", status="starting", reserved_by=reserved_by))


def test_a_commit_keeps_what_was_reserved_and_the_platform_does_not_tell() -> None:
    registry = Registry()
    reserved = registry.reserve(launch_spec("a", num_gpus=2), needs_host_port=True)
    entry = registry.commit(started("a", platform_job_id="4711", extras={"instance_id": "i-1"}))
    assert (entry.status, entry.host_port, entry.num_gpus) == ("running", reserved.host_port, 2)
    assert (entry.image, entry.model_path) == (reserved.image, reserved.model_path)
    assert entry.reserved_by is None
    assert registry.read().services["a"] == entry
    assert content(registry)["a"]["instance_id"] == "i-1"


def test_a_commit_without_its_reservation_registers_the_service() -> None:
    registry = Registry()
    registry.reserve(launch_spec("a"), needs_host_port=True)
    registry.path.unlink()
    registry.commit(started("a"))
    assert registry.read().latest == "a"


def test_latest_is_the_last_start_and_moves_back_when_that_is_removed() -> None:
    registry = Registry()
    for job_id in "abc":
        registry.commit(started(job_id))
    assert content(registry)["latest"] == "c"
    registry.reserve(launch_spec("d"), needs_host_port=False)
    assert content(registry)["latest"] == "c", "what is only being started is not the latest"
    assert registry.remove("c")
    assert content(registry)["latest"] == "b"
    assert registry.mark("b", "gone")
    assert content(registry)["latest"] == "a"
    assert registry.remove("a")
    assert "latest" not in content(registry)


def test_an_adopted_service_that_started_long_ago_is_not_the_latest() -> None:
    registry = Registry()
    registry.commit(started("new", started_at="2026-11-24T10:00:00.123456789Z"))
    registry.commit(started("old", started_at="2026-11-23T10:00:00Z"))
    assert registry.read().latest == "new"
    assert registry.read().services["new"].started_at == "2026-11-24T10:00:00.123456+00:00"


def test_removing_what_is_not_there_says_so() -> None:
    assert not Registry().remove("a")
    assert not Registry().mark("a", "gone")


def test_marking_a_reservation_ends_it() -> None:
    registry = Registry()
    registry.reserve(launch_spec("a"), needs_host_port=False)
    registry.mark("a", "gone")
    assert "reserved_by" not in content(registry)["a"]


SEED_FILE = {
    "s1": {"network_arch": "cosmos-rl", "platform": "slurm", "host_url": "http://localhost:8081", "host_port": "8081"},
    "latest": "s1",
}


def test_an_entry_of_the_seeds_format_is_a_running_service() -> None:
    registry = Registry()
    registry.path.write_text(json.dumps({**SEED_FILE, "s1": {**SEED_FILE["s1"], "platform_job_id": 4711}}))  # type: ignore[dict-item]
    registry.path.chmod(0o644)
    entry = registry.read().services["s1"]
    assert (entry.status, entry.image, entry.host_port, entry.platform_job_id) == ("running", "", 8081, "4711")
    assert registry.read().latest == "s1"


def test_what_others_wrote_survives_every_change() -> None:
    registry = Registry()
    theirs: dict[str, Any] = {
        "version": 3,
        "note": "mine",
        "no-service": {"color": "red"},
        "half": {"network_arch": "cosmos-rl"},
        "list": [1, 2],
        "s1": {**SEED_FILE["s1"], "tunnel_pid": 12, "nested": {"a": [None]}},  # type: ignore[dict-item]
    }
    registry.path.write_text(json.dumps(theirs))
    registry.reserve(launch_spec("a"), needs_host_port=True)
    registry.commit(started("a"))
    registry.mark("s1", "gone")
    registry.commit(started("s1"))
    registry.write(service("s1"))
    assert not registry.remove("half"), "what is no service is not ours to remove"
    registry.remove("a")
    after = content(registry)
    assert {key: after[key] for key in theirs if key != "s1"} == {key: theirs[key] for key in theirs if key != "s1"}
    assert (after["s1"]["tunnel_pid"], after["s1"]["nested"]) == (12, {"a": [None]})


def test_the_file_is_one_json_object_of_mode_0600_that_keeps_its_schema() -> None:
    registry = Registry()
    registry.reserve(launch_spec("a"), needs_host_port=True)
    registry.commit(started("b", extras={"more": {"x": 1}}))
    assert registry.path.stat().st_mode & 0o777 == 0o600
    schema = json.loads((SCHEMAS / "registry.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(content(registry))


@pytest.mark.parametrize(
    ("moment", "utc"),
    [
        ("2026-11-24T10:00:00Z", "2026-11-24T10:00:00+00:00"),
        ("2026-11-24 10:00:00.5+02:00", "2026-11-24T08:00:00.500000+00:00"),
        ("2026-11-24T10:00:00.123456789Z", "2026-11-24T10:00:00.123456+00:00"),
        ("yesterday", None),
        ("2026-13-24T10:00:00Z", None),
        ("0001-01-01T00:00:00+14:00", None),
        (None, None),
    ],
)
def test_moments_of_other_tools_are_read(moment: str | None, utc: str | None) -> None:
    assert registry_entries.utc(moment) == utc


class AnyOrderOfOperations(RuleBasedStateMachine):
    """A model of the registry beside the real one: after any operations both hold the same services."""

    names = st.sampled_from(["a", "b", "c", "d"])

    @initialize(theirs=st.dictionaries(st.sampled_from(["x", "y"]), json_values), keys=unknown_keys)
    def others_wrote_first(self, theirs: dict[str, Any], keys: dict[str, Any]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.registry = Registry(Path(self.folder.name) / "registry.json")
        self.theirs, self.keys = theirs, keys
        self.statuses: dict[str, str] = {"b": "running"}
        self.by_start = ["b"]
        state = {**theirs, "b": {"network_arch": "n", "platform": "p", "host_url": "u", **keys}, "latest": "b"}
        self.registry.path.write_text(json.dumps(state))

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @rule(name=names)
    def reserve(self, name: str) -> None:
        try:
            self.registry.reserve(launch_spec(name), needs_host_port=True)
            assert self.statuses.get(name, "starting") == "starting"
            self.statuses[name] = "starting"
            self.started_now(name)
        except BadInput as error:
            assert error.type == "job_id_taken" and self.statuses[name] != "starting"

    @rule(name=names)
    def commit(self, name: str) -> None:
        self.registry.commit(started(name))
        self.statuses[name] = "running"
        self.started_now(name)

    @rule(name=names)
    def remove(self, name: str) -> None:
        assert self.registry.remove(name) == (self.statuses.pop(name, None) is not None)

    @rule(name=names, status=st.sampled_from(["running", "gone"]))
    def mark(self, name: str, status: str) -> None:
        assert self.registry.mark(name, status) == (name in self.statuses)
        if name in self.statuses:
            self.statuses[name] = status

    def started_now(self, name: str) -> None:
        self.by_start = [*(other for other in self.by_start if other != name), name]

    @invariant()
    def both_hold_the_same(self) -> None:
        if not hasattr(self, "registry"):
            return
        snapshot, state = self.registry.read(), json.loads(self.registry.path.read_text())
        services = {name: entry.status for name, entry in snapshot.services.items() if name not in self.theirs}
        assert services == self.statuses
        assert {key: state[key] for key in self.theirs} == self.theirs
        held = [
            entry.host_port for entry in snapshot.services.values() if entry.host_port and entry.status == "starting"
        ]
        assert len(held) == len(set(held))
        assert snapshot.latest == state.get("latest")
        running = [name for name in self.by_start if self.statuses.get(name) == "running"]
        assert snapshot.latest == (running[-1] if running else None)


AnyOrderOfOperations.TestCase.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
TestAnyOrderOfOperations = AnyOrderOfOperations.TestCase
