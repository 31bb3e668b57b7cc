"""The port-forward's bookkeeping: which process it is, what it is given, whom it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import kubernetes_forward as forward
import psutil
import pytest
from kubernetes_cluster import Access
from support import eventually

from inference_service import processes
from inference_service.errors import BadInput

ACCESS = Access("team", "dev", "/home/me/config")


@pytest.mark.parametrize("value", [None, 7, {}, {"pid": "7", "started": 1.0, "port": 80}, {"pid": 7, "port": 80}])
def test_what_is_no_port_forward_is_none(value: Any) -> None:
    assert forward.from_json(value) is None


def test_a_port_forward_is_remembered_as_json() -> None:
    made = forward.Forward(7, 1.5, 8081)
    assert forward.from_json(made.to_json()) == made
    assert made.url == "http://localhost:8081"


def test_a_process_that_only_has_the_pid_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        started = processes.started_at(stranger.pid)
        assert started is not None
        forward.end(forward.Forward(stranger.pid, started - 3600, 8081))
        assert psutil.pid_exists(stranger.pid)
        forward.end(forward.Forward(stranger.pid, started, 8081))
        assert not psutil.pid_exists(stranger.pid)


def test_a_port_that_is_in_use_is_refused_and_any_other_is_found() -> None:
    with forward.listen(None) as first:
        port = first.getsockname()[1]
        assert first.getsockname()[0] == "127.0.0.1"
        with pytest.raises(BadInput, match=str(port)):
            forward.listen(port)
    forward.listen(port).close()


def test_it_gets_the_way_to_the_cluster_and_no_secret_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    class Recorder:
        pid = os.getpid()

        def __init__(self, command: list[str], **options: Any) -> None:
            given.append({"command": command, **options})

    for name in ("HF_TOKEN", "NGC_KEY"):
        monkeypatch.setenv(name, "planted-secret")
    monkeypatch.setattr(subprocess, "Popen", Recorder)
    with forward.listen(None) as listener:
        made = forward.start(listener, ACCESS, "job-1", 8080)
        assert made.port == listener.getsockname()[1]
        assert given[0]["pass_fds"] == [listener.fileno()]
    assert "planted-secret" not in str(given)
    assert given[0]["env"]["KUBECONFIG"] == ACCESS.kubeconfig
    assert given[0]["start_new_session"] is True
    assert forward.log_file("job-1").parent.stat().st_mode & 0o077 == 0


def test_commands_that_open_the_same_port_forward_wait_for_each_other() -> None:
    inside, most = [], []

    def enter() -> None:
        with forward.alone("job-1"):
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_the_port_forwards_of_a_service_are_found_by_their_command_line() -> None:
    assert forward.running("job-1") == []
    serve = "import socket, sys, time; s = socket.create_server(('127.0.0.1', 0)); time.sleep(60)"
    command = [sys.executable, "-c", serve, str(forward.PROGRAM), "--job-id", "job-1"]
    with subprocess.Popen(command) as process:
        try:
            found = eventually(lambda: forward.running("job-1"))
            assert [item.pid for item in found] == [process.pid]
            assert forward.running("job-2") == []
            forward.end_all("job-1", None)
            assert forward.running("job-1") == []
        finally:
            process.kill()
