"""Starts that fail, are interrupted or meet others on a real engine: nothing is left, and nobody else is harmed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid

import pytest
from docker_engine import BASE_IMAGE, Engine, entry_of, free_port, launch_spec
from support import SKILL

from inference_service.contracts import LaunchSpec, State
from inference_service.errors import BadInput, PortTaken, ToolError

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.xdist_group("docker")]


def test_a_port_that_a_stranger_took_is_told_and_nothing_is_left(engine: Engine) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        with pytest.raises(PortTaken) as taken:
            engine.start(host_port=port)
    assert taken.value.port == port
    assert engine.ours() == []


def test_a_port_that_another_container_has_is_told_the_same_way(engine: Engine) -> None:
    spec, _ = engine.start()
    with pytest.raises(PortTaken):
        engine.start(host_port=spec.host_port)
    assert engine.ours() == [spec.job_id]


def test_a_job_id_that_runs_already_is_refused_and_goes_on_running(engine: Engine) -> None:
    spec, started = engine.start()
    with pytest.raises(BadInput) as refused:
        engine.start(job_id=spec.job_id)
    assert refused.value.type == "job_id_in_use"
    assert spec.job_id in refused.value.fix
    assert engine.driver.status(entry_of(spec, started)).state is State.RUNNING


def test_a_strangers_container_is_neither_replaced_nor_stopped(engine: Engine) -> None:
    name = f"stranger-{uuid.uuid4().hex[:8]}"
    stranger = engine.api.create_container(BASE_IMAGE, ["sleep", "60"], name=name)["Id"]
    try:
        engine.api.start(stranger)
        with pytest.raises(BadInput) as refused:
            engine.start(job_id=name)
        assert refused.value.type == "container_name_taken"
        for job_id in (name, stranger[:12]):
            engine.driver.stop(entry_of(launch_spec(job_id=job_id)))
        assert engine.inspect(stranger)["State"]["Running"]
    finally:
        engine.api.remove_container(stranger, force=True)


def test_a_container_that_the_seeds_own_way_started_is_stopped_by_its_uuid(engine: Engine) -> None:
    spec = launch_spec()
    engine.api.start(engine.api.create_container(BASE_IMAGE, ["sleep", "60"], name=spec.job_id)["Id"])
    assert engine.driver.status(entry_of(spec)).state is State.RUNNING
    engine.driver.stop(entry_of(spec))
    assert engine.driver.status(entry_of(spec)).state is State.EXITED


STARTER = """
import json, os, sys, time
import docker
from inference_service import output, platforms
from inference_service.contracts import LaunchSpec

spec = LaunchSpec.from_json(json.loads(os.environ["STARTER_SPEC"]))
slow, api = os.environ["STARTER_SLOW"], docker.APIClient
def slowly(real):
    def call(*arguments, **named):
        if slow == "before_start" and real.__name__ == "start":
            print("reached", flush=True)
            time.sleep(60)
        result = real(*arguments, **named)
        if real.__name__ == slow:
            print("reached", flush=True)
            time.sleep(1)  # done by the daemon, not yet answered
        return result
    return call
api.create_container, api.start = slowly(api.create_container), slowly(api.start)

def main(arguments):
    platforms.load("local-docker").start(spec, lambda progress: None)
    return {"started": spec.job_id}

sys.exit(output.run(output.ArgumentParser("start one service"), main))
"""


def starter(spec: LaunchSpec, slow: str = "") -> subprocess.Popen[str]:
    """A process that starts the service; `slow` is the call to Docker in which it says `reached` and lingers."""
    environment = {
        "PYTHONPATH": str(SKILL / "scripts"),
        "STARTER_SPEC": json.dumps(spec.to_json()),
        "STARTER_SLOW": slow,
    }
    return subprocess.Popen(
        [sys.executable, "-c", STARTER], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("slow", ["create_container", "start"])
def test_an_interruption_while_docker_works_leaves_no_container(
    engine: Engine, slow: str, sent: signal.Signals
) -> None:
    process = starter(launch_spec(host_port=free_port()), slow)
    assert process.stdout is not None
    assert process.stdout.readline() == "reached\n"
    assert len(engine.ours()) == 1, "the test interrupted too early"
    process.send_signal(sent)
    said = process.communicate(timeout=30)[0]
    assert json.loads(said)["error"]["message"] == "interrupted; nothing was left behind"
    assert process.returncode == 128 + sent
    assert engine.ours() == []


def test_a_kill_between_create_and_start_leaves_a_container_that_stop_removes(engine: Engine) -> None:
    spec = launch_spec(host_port=free_port())
    process = starter(spec, "before_start")
    assert process.stdout is not None
    assert process.stdout.readline() == "reached\n"
    process.kill()
    process.communicate()
    assert engine.ours() == [spec.job_id]
    assert engine.driver.discover() == [], "it does not run"
    assert engine.driver.status(entry_of(spec)).state is State.PENDING
    engine.driver.stop(entry_of(spec))
    assert engine.ours() == []


def test_a_kill_after_the_start_leaves_a_service_that_is_discovered(engine: Engine) -> None:
    spec = launch_spec(host_port=free_port())
    process = starter(spec, "start")
    assert process.stdout is not None
    assert process.stdout.readline() == "reached\n"
    process.kill()
    process.communicate()
    assert [service.job_id for service in engine.driver.discover()] == [spec.job_id]


def test_processes_that_need_the_same_new_network_make_it_once(engine: Engine, network: str) -> None:
    specs = [launch_spec(host_port=free_port(), platform_options={"network": network}) for _ in range(4)]
    processes = [starter(spec) for spec in specs]
    assert [json.loads(process.communicate(timeout=60)[0]) for process in processes] == [
        {"started": spec.job_id} for spec in specs
    ]
    (made,) = [found for found in engine.api.networks(names=[network]) if found["Name"] == network]
    assert made["Driver"] == "bridge"
    assert made["Labels"] == {"tao-made-by": "tao-run-inference-service"}
    assert len(engine.api.inspect_network(made["Id"])["Containers"]) == 4


def test_a_network_name_that_is_ambiguous_already_is_told_before_a_container_is_made(
    engine: Engine, network: str
) -> None:
    for _ in range(2):
        engine.api.create_network(network, driver="bridge", check_duplicate=False)
    if len(engine.api.networks(names=[network])) < 2:
        pytest.skip("this engine does not make two networks of one name")
    with pytest.raises(ToolError) as refused:
        engine.start(platform_options={"network": network})
    assert refused.value.type == "network_ambiguous"
    assert engine.ours() == []
