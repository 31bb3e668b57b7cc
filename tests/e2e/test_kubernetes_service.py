"""One service on a real cluster, by the driver alone: what is made, how it is reached, how it ends, what is left."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_forward as forward
import psutil
import pytest
import requests
from kubernetes_engine import (
    IMAGE,
    SERVE,
    Namespace,
    answer,
    entry_of,
    is_local,
    launch_spec,
    need_gpus,
    running,
    silent,
    told,
)
from support import eventually, need_engine

from inference_service.contracts import Driver, Mount, Progress, ServiceEntry, State
from inference_service.errors import BadInput, DecisionNeeded, ToolError

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]


def listening(port: int | None) -> socket.socket | None:
    try:
        return forward.listen(port)
    except BadInput:
        return None


def output_of(kubernetes: Driver, **changes: Any) -> list[str]:
    """What a container prints that only runs a command."""
    entry = entry_of(kubernetes.start(launch_spec(**changes), silent))
    eventually(lambda: kubernetes.status(entry).dead, timeout=60)
    lines = list(kubernetes.logs(entry, None, False))
    kubernetes.stop(entry)
    return lines


def test_a_service_answers_through_a_forwarded_port_and_one_stop_leaves_nothing(
    kubernetes: Driver, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    entry = entry_of(kubernetes.start(launch_spec(secret_env=("HF_TOKEN",)), silent))
    assert "Directory listing" in answer(entry)
    assert kubernetes.status(entry).state is State.RUNNING
    assert set(namespace.left()) == {"jobs", "pods", "services", "secrets"}
    pid = entry.extras["port_forward"]["pid"]
    assert psutil.pid_exists(pid)
    kubernetes.stop(entry)
    assert namespace.left() == {}
    assert not psutil.pid_exists(pid)
    assert not forward.log_file(entry.job_id).exists()
    assert kubernetes.status(entry).state is State.EXITED
    kubernetes.stop(entry)


def test_one_delete_of_the_job_takes_all_and_the_port_forward_ends_by_itself(
    kubernetes: Driver, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    entry = entry_of(kubernetes.start(launch_spec(secret_env=("HF_TOKEN",)), silent))
    answer(entry)
    delete = namespace.cluster.batch.delete_namespaced_job
    namespace.cluster.ask(delete, entry.platform_job_id, namespace.name, body={"propagationPolicy": "Foreground"})
    eventually(lambda: namespace.left() == {}, timeout=60)
    eventually(lambda: not forward.running(entry.job_id), timeout=30)
    assert kubernetes.status(entry).state is State.EXITED


def _kill_forward(entry: ServiceEntry) -> None:
    """Kill its port-forward and wait until the process has ended: it stops listening a moment before that."""
    remembered = forward.from_json(entry.extras["port_forward"])
    assert remembered is not None
    psutil.Process(remembered.pid).kill()
    eventually(lambda: not remembered.alive)


def test_a_port_forward_that_was_killed_is_opened_again_on_the_same_port_once_and_said(
    kubernetes: Driver, namespace: Namespace
) -> None:
    entry = entry_of(kubernetes.start(launch_spec(), silent))
    answer(entry)
    assert kubernetes.reach(entry, silent) is entry
    _kill_forward(entry)
    said: list[Progress] = []
    again = kubernetes.reach(entry, said.append)
    assert [step.stage for step in said] == ["port-forward"]
    assert again.host_url == entry.host_url
    assert again.extras["port_forward"]["pid"] != entry.extras["port_forward"]["pid"]
    assert "Directory listing" in answer(again)
    # Whoever still has the old entry finds the new one.
    assert kubernetes.reach(entry, said.append).extras == again.extras
    assert len(said) == 1
    kubernetes.stop(entry)
    assert forward.running(entry.job_id) == []


def test_two_commands_at_once_open_one_port_forward(kubernetes: Driver, namespace: Namespace) -> None:
    entry = entry_of(kubernetes.start(launch_spec(), silent))
    answer(entry)
    _kill_forward(entry)
    threads = [threading.Thread(target=kubernetes.reach, args=(entry, silent)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(forward.running(entry.job_id)) == 1
    kubernetes.stop(entry)


def test_a_port_that_a_stranger_took_meanwhile_is_left_to_him(kubernetes: Driver, namespace: Namespace) -> None:
    entry = entry_of(kubernetes.start(launch_spec(), silent))
    answer(entry)
    _kill_forward(entry)
    with eventually(lambda: listening(entry.host_port)):
        again = kubernetes.reach(entry, silent)
    assert again.host_port != entry.host_port
    assert "Directory listing" in answer(again)
    kubernetes.stop(again)


def test_a_large_body_passes_through_the_port_forward_in_flat_memory(kubernetes: Driver, namespace: Namespace) -> None:
    server = (
        "import http.server,sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "  def do_POST(self):\n"
        "    left=int(self.headers['Content-Length'])\n"
        "    n=0\n"
        "    while left>0:\n"
        "      b=self.rfile.read(min(left,65536)); n+=len(b); left-=len(b)\n"
        "    self.send_response(200); self.end_headers(); self.wfile.write(b'x'*3000000+str(n).encode())\n"
        "http.server.ThreadingHTTPServer(('',8080),H).serve_forever()\n"
    )
    entry = entry_of(kubernetes.start(launch_spec(command=f'umask 0 && exec python3 -c "{server}"'), silent))

    def post(path: str, size: int) -> str | None:
        try:
            return requests.post(entry.host_url + path, data=b"b" * size, timeout=60).text
        except requests.RequestException:
            return None

    eventually(lambda: post("/ready", 1), timeout=60)
    size = 40_000_000
    before = psutil.Process(entry.extras["port_forward"]["pid"]).memory_info().rss
    text = post("/all", size)
    assert text is not None and text.endswith(f"x{size}")
    assert len(text) == 3_000_000 + len(str(size))
    grown = psutil.Process(entry.extras["port_forward"]["pid"]).memory_info().rss - before
    assert grown < 15_000_000
    kubernetes.stop(entry)


def test_a_node_port_answers_from_outside(kubernetes: Driver, namespace: Namespace) -> None:
    entry = entry_of(kubernetes.start(launch_spec(platform_options={"service-type": "NodePort"}), silent))
    assert entry.host_port is None
    assert "Directory listing" in answer(entry)
    kubernetes.stop(entry)
    assert namespace.left() == {}


def test_a_load_balancers_address_that_comes_late_is_waited_for(kubernetes: Driver, namespace: Namespace) -> None:
    def give() -> None:
        name = namespace.one("services")["metadata"]["name"]
        eventually(lambda: any("waiting for the load balancer" in step.message for step in said), timeout=30)
        namespace.give_address(name, {"ip": "10.244.255.9"})

    said: list[Progress] = []
    balancer = threading.Thread(target=give)
    balancer.start()
    started = kubernetes.start(launch_spec(platform_options={"service-type": "LoadBalancer"}), said.append)
    balancer.join()
    assert started.host_url == "http://10.244.255.9:8080"
    if is_local():
        assert "Directory listing" in answer(entry_of(started))
    kubernetes.stop(entry_of(started))


def test_a_load_balancer_may_give_a_host_name(kubernetes: Driver, namespace: Namespace) -> None:
    def give() -> None:
        namespace.give_address(namespace.one("services")["metadata"]["name"], {"hostname": "lb-1.eu.elb.example.com"})

    balancer = threading.Thread(target=give)
    balancer.start()
    started = kubernetes.start(launch_spec(platform_options={"service-type": "LoadBalancer"}), silent)
    balancer.join()
    assert started.host_url == "http://lb-1.eu.elb.example.com:8080"
    assert kubernetes.discover()[0].host_url == started.host_url
    kubernetes.stop(entry_of(started))


def test_without_an_address_the_user_decides_and_nothing_is_left(kubernetes: Driver, namespace: Namespace) -> None:
    options = {"service-type": "LoadBalancer", "address-timeout": 1.0}
    with pytest.raises(DecisionNeeded) as asked:
        kubernetes.start(launch_spec(platform_options=options), silent)
    need = asked.value.needs[0]
    assert need.answer_with == "--service-type"
    assert [option["service_type"] for option in need.options or ()] == ["ClusterIP", "NodePort", "LoadBalancer"]
    assert namespace.left() == {}


def test_a_user_at_the_terminal_goes_on_with_a_forwarded_port_while_the_pod_loads(
    kubernetes: Driver, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inference_service import output

    monkeypatch.setattr(output, "decide", lambda needs: {"service_type": "ClusterIP"})
    options = {"service-type": "LoadBalancer", "address-timeout": 0.5}
    entry = entry_of(kubernetes.start(launch_spec(platform_options=options), silent))
    assert entry.extras["service_type"] == "ClusterIP"
    assert "Directory listing" in answer(entry)
    assert len(namespace.get("pods")) == 1
    kubernetes.stop(entry)


def test_a_pod_has_no_privilege_no_token_and_the_memory_that_was_asked_for(
    kubernetes: Driver, namespace: Namespace
) -> None:
    command = (
        "umask 0 && grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status; ls /var/run/secrets 2>&1;"
        " df -k /dev/shm | tail -1;"
        " env | grep -c SERVICE_HOST; echo $$ '$(HOSTNAME)' \"$LITERAL\""
    )
    options = {"service-type": "ClusterIP", "shm-size": "64m"}
    lines = output_of(kubernetes, command=command, env={"LITERAL": "a$(HOME)$$b"}, platform_options=options)
    printed = "\n".join(lines)
    assert "NoNewPrivs:\t1" in printed
    assert "Seccomp:\t2" in printed
    assert "No such file or directory" in printed
    assert " 65536 " in printed
    assert lines[-2] in ("0", "1")  # the API server's own variable is always there
    assert lines[-1].split(" ", 1)[1] == "$(HOSTNAME) a$(HOME)$$b"


def test_a_path_of_the_node_is_seen_by_the_container(kubernetes: Driver, namespace: Namespace, tmp_path: Path) -> None:
    need_engine("kubernetes-local", is_local(), "the cluster's nodes do not see this machine's files")
    (tmp_path / "checkpoint").write_text("weights")
    tmp_path.chmod(0o755)
    mounts = (Mount(str(tmp_path), "/ckpt"),)
    lines = output_of(kubernetes, command="cat /ckpt/checkpoint; touch /ckpt/x 2>&1", mounts=mounts)
    assert lines[0].startswith("weights")
    assert "Read-only file system" in "".join(lines)


@pytest.mark.xdist_group("kubernetes-gpus")
def test_gpus_are_a_limit_of_the_job_and_too_many_are_refused_before_anything_is_made(
    kubernetes: Driver, namespace: Namespace
) -> None:
    most = need_gpus(namespace)
    with pytest.raises(ToolError) as refused:
        kubernetes.start(launch_spec(num_gpus=most + 1), silent)
    assert refused.value.type == "gpu_capacity"
    assert f"--num-gpus {most}" in refused.value.fix
    assert namespace.left() == {}
    entry = entry_of(kubernetes.start(launch_spec(num_gpus=1), silent))
    container = namespace.one("jobs")["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    running(kubernetes, entry)
    kubernetes.stop(entry)


def test_a_pod_that_fits_nowhere_is_pending_with_the_schedulers_words(kubernetes: Driver, namespace: Namespace) -> None:
    options = {"service-type": "ClusterIP", "node-selector": "disk=none-such", "allow-pending": True}
    entry = entry_of(kubernetes.start(launch_spec(platform_options=options), silent))
    status = told(kubernetes, entry, "Unschedulable")
    assert status.state is State.PENDING
    assert "node affinity/selector" in status.reason
    assert list(kubernetes.logs(entry, None, False)) == []
    kubernetes.stop(entry)


def test_a_missing_claim_is_said(kubernetes: Driver, namespace: Namespace) -> None:
    options = {"service-type": "ClusterIP", "pvc": "checkpoints/run7:/models"}
    entry = entry_of(kubernetes.start(launch_spec(platform_options=options), silent))
    status = told(kubernetes, entry, "checkpoints")
    assert status.state is State.PENDING
    assert 'persistentvolumeclaim "checkpoints" not found' in status.reason
    kubernetes.stop(entry)


def test_an_image_whose_registry_does_not_answer_is_pending(kubernetes: Driver, namespace: Namespace) -> None:
    entry = entry_of(kubernetes.start(launch_spec(image="127.0.0.1:5999/none/such:1"), silent))
    status = told(kubernetes, entry, "ErrImagePull")
    # A registry may come back: the cluster goes on trying.
    assert status.state is State.PENDING
    kubernetes.stop(entry)


def test_a_deadline_ends_the_service_on_the_cluster_itself(kubernetes: Driver, namespace: Namespace) -> None:
    options = {"service-type": "ClusterIP"}
    started = kubernetes.start(launch_spec(platform_options=options, max_hours=0.0014), silent)
    entry = entry_of(started)
    assert namespace.one("jobs")["spec"]["activeDeadlineSeconds"] == 5
    assert [found.stop_after for found in kubernetes.discover()] == [started.stop_after] != [None]
    eventually(lambda: kubernetes.status(entry).dead, timeout=60)
    assert "DeadlineExceeded" in eventually(lambda: kubernetes.status(entry).reason)
    eventually(lambda: not forward.running(entry.job_id), timeout=30)
    kubernetes.stop(entry)
    assert namespace.left() == {}


def test_a_server_that_crashes_is_failed_with_its_exit_status_and_log(kubernetes: Driver, namespace: Namespace) -> None:
    entry = entry_of(kubernetes.start(launch_spec(command="echo out of memory; exit 3"), silent))
    eventually(lambda: kubernetes.status(entry).dead, timeout=60)
    status = kubernetes.status(entry)
    assert status.state is State.FAILED
    assert "exit status 3" in status.reason
    assert list(kubernetes.logs(entry, 5, False)) == ["out of memory"]
    eventually(lambda: kubernetes.discover() == [])
    kubernetes.stop(entry)


def test_a_pod_that_was_killed_or_evicted_is_failed_and_says_why(kubernetes: Driver, namespace: Namespace) -> None:
    core = namespace.cluster.core
    killed, drained = (entry_of(kubernetes.start(launch_spec(), silent)) for _ in range(2))
    for entry in (killed, drained):
        running(kubernetes, entry)
    pods = {pod["metadata"]["labels"]["tao-job-id"]: pod["metadata"]["name"] for pod in namespace.get("pods")}
    namespace.cluster.ask(core.delete_namespaced_pod, pods[killed.job_id], namespace.name)
    name = pods[drained.job_id]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace.name}}
    namespace.cluster.ask(core.create_namespaced_pod_eviction, name, namespace.name, eviction)
    assert kubernetes.status(killed).state is State.FAILED
    assert kubernetes.status(drained).state is State.FAILED
    for entry in (killed, drained):
        told(kubernetes, entry, "BackoffLimitExceeded")
        kubernetes.stop(entry)
    assert namespace.left() == {}


def test_logs_follow_until_the_server_ends(kubernetes: Driver, namespace: Namespace) -> None:
    command = "for i in 1 2 3 4 5; do echo line $i; sleep 0.4; done"
    entry = entry_of(kubernetes.start(launch_spec(command=command), silent))
    assert list(kubernetes.logs(entry, None, True)) == [f"line {number}" for number in range(1, 6)]
    assert list(kubernetes.logs(entry, 2, False)) == ["line 4", "line 5"]
    kubernetes.stop(entry)


def test_services_are_discovered_by_their_marks_and_those_of_others_are_not(
    kubernetes: Driver, namespace: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = entry_of(kubernetes.start(launch_spec(num_gpus=0), silent))
    found = kubernetes.discover()
    assert [replace(item, started_at=None) for item in found] == [
        replace(item, host_url=entry.host_url, host_port=entry.host_port, extras=entry.extras, started_at=None)
        for item in found
    ]
    assert (found[0].job_id, found[0].image, found[0].model_path) == (entry.job_id, IMAGE, entry.model_path)
    monkeypatch.setenv("TAO_INF_MS_STATE_FILE", str(tmp_path / "another.json"))
    assert kubernetes.discover() == []
    kubernetes.stop(entry)


def test_stop_ends_the_server_without_waiting_for_the_grace_period(kubernetes: Driver, namespace: Namespace) -> None:
    entry = entry_of(kubernetes.start(launch_spec(command=f"{SERVE.replace('exec ', '')}; true"), silent))
    answer(entry)
    began = time.monotonic()
    kubernetes.stop(entry)
    assert time.monotonic() - began < 8
