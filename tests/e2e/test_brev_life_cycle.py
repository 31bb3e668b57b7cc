"""Services on Brev from start to stop, by the scripts' command lines: a double of Brev, and real containers in it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from brev_double import IMAGE, LAUNCH, BrevDouble, brev, need_smollm2_image, processes_of
from docker_engine import entry_of, free_port, launch_spec
from support import SCRIPTS, eventually, run_script

from inference_service import platforms
from inference_service.contracts import State
from inference_service.errors import BadInput, PortTaken

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.xdist_group("docker")]
__all__ = ["brev"]

ASK = (
    "--prompt",
    "What is the capital of France?",
    "--accept-defaults",
    "--set",
    "max_tokens=24",
    "--set",
    "temperature=0",
)


@pytest.fixture(autouse=True)
def image() -> None:
    need_smollm2_image()


def start(*arguments: str, **settings: Any) -> dict[str, Any]:
    document: dict[str, Any] = run_script("start_service", *LAUNCH, *arguments, **settings).document
    return document


def registered(job_id: str) -> dict[str, Any]:
    services = run_script("registry", "list").document["services"]
    return next(service for service in services if service["job_id"] == job_id)


def test_a_service_is_started_asked_read_and_stopped_on_an_instance_that_the_user_has(brev: BrevDouble) -> None:
    address = brev.add("mine")["address"]
    started = start("--instance", "mine")
    job_id = started["job_id"]
    assert started["ready"] and started["host_url"] == f"http://{address}:{started['host_port']}"
    assert brev.containers("mine") == [job_id]
    answer = run_script("send_request", "--job-id", job_id, *ASK).document
    assert "Paris" in answer["content"]
    log = run_script("service_logs", "--job-id", job_id).document["lines"]
    assert log and "mine" not in log and not any(line.startswith("end-of-") for line in log)
    stopped = run_script("stop_service", "--job-id", job_id).document
    assert stopped["stopped"] == [job_id]
    assert brev.containers() == [] and "mine" in brev.instances() and brev.homes() == []
    assert run_script("registry", "list").document["services"] == []


def test_creating_an_instance_is_asked_first_and_deleting_it_is_asked_at_the_end(brev: BrevDouble) -> None:
    asked = run_script("start_service", *LAUNCH, expect=3).document["needs"]
    assert [(need["name"], need["answer_with"]) for need in asked] == [("create-instance", "--create-instance yes")]
    assert "bills" in asked[0]["question"]
    assert brev.instances() == {} and run_script("registry", "list").document["services"] == []

    started = start("--create-instance", "yes", "--gpu-name", "L40S", "--instance-type", "g6e.xlarge")
    job_id, name = started["job_id"], f"tao-inf-{started['job_id'][:8]}"
    created = brev.calls("create")[0]
    assert created[:2] == ["create", name] and "--detached" in created and "--timeout" in created
    assert created[created.index("--gpu-name") + 1] == "L40S"
    entry = registered(job_id)
    assert (entry["instance"], entry["gpu"], entry["instance_type"]) == (name, "L40S", "g6e.xlarge")
    assert entry["instance_created_at"].endswith("+00:00") and entry["created_instance"] is True

    asked = run_script("stop_service", "--job-id", job_id, expect=3).document["needs"]
    assert name in asked[0]["question"] and "L40S" in asked[0]["question"]
    assert asked[0]["answer_with"].startswith("--delete-instance yes")
    assert brev.containers() == [job_id], "nothing was changed"
    run_script("stop_service", "--job-id", job_id, "--delete-instance", "yes")
    assert brev.instances() == {} and brev.containers() == []


def test_an_instance_that_the_user_keeps_is_used_again_by_the_next_service(brev: BrevDouble) -> None:
    first = start("--create-instance", "yes")
    name = f"tao-inf-{first['job_id'][:8]}"
    run_script("stop_service", "--job-id", first["job_id"], "--delete-instance", "no")
    assert [*brev.instances()] == [name] and brev.containers() == []
    asked = run_script("start_service", *LAUNCH, expect=3).document["needs"][0]
    assert [option["instance"] for option in asked["options"]] == [name, "new"]
    second = start("--instance", name)
    assert brev.containers(name) == [second["job_id"]]
    run_script("stop_service", "--all", "--delete-instance", "yes")
    assert brev.instances() == {}


def test_two_services_on_one_instance_have_two_ports_and_the_instance_goes_with_the_last(brev: BrevDouble) -> None:
    first = start("--create-instance", "yes")
    name = f"tao-inf-{first['job_id'][:8]}"
    second = start("--instance", name)
    assert first["host_port"] != second["host_port"]
    assert sorted(brev.containers(name)) == sorted([first["job_id"], second["job_id"]])
    run_script("stop_service", "--job-id", first["job_id"], "--delete-instance", "yes")
    assert brev.containers(name) == [second["job_id"]], "an instance with another service on it is not deleted"
    assert "Paris" in run_script("send_request", "--job-id", second["job_id"], *ASK).document["content"]
    run_script("stop_service", "--job-id", second["job_id"], "--delete-instance", "yes")
    assert brev.instances() == {}


def test_a_port_of_the_instance_that_somebody_else_has_is_left_to_them(brev: BrevDouble) -> None:
    address = brev.add("mine")["address"]
    first = start("--instance", "mine")
    taken = first["host_port"]
    run_script("registry", "remove", first["job_id"])
    second = start("--instance", "mine")
    assert second["host_port"] != taken and second["host_url"].startswith(f"http://{address}:")
    assert sorted(brev.containers("mine")) == sorted([first["job_id"], second["job_id"]])


@pytest.mark.parametrize("stays", [False, True], ids=["brev_leaves_an_ssh", "brev_stays"])
def test_behind_a_firewall_a_port_forward_is_opened_reopened_when_it_dies_and_ended(
    brev: BrevDouble, stays: bool
) -> None:
    brev.set(port_forward_stays=stays)
    brev.add("mine", firewalled=True)
    started = start("--instance", "mine")
    job_id = started["job_id"]
    assert started["host_url"].startswith("http://localhost:")
    process = psutil.Process(registered(job_id)["tunnel"]["pid"])
    assert process.create_time() == pytest.approx(registered(job_id)["tunnel"]["started"], abs=0.1)
    assert "Paris" in run_script("send_request", "--job-id", job_id, *ASK).document["content"]
    assert len(brev.calls("port-forward")) == 1, "one that lives is not opened again"

    process.kill()
    answer = run_script("send_request", "--job-id", job_id, *ASK)
    assert "Paris" in answer.document["content"] and "port-forward to mine has died" in answer.stderr
    assert len(brev.calls("port-forward")) == 2
    again = psutil.Process(registered(job_id)["tunnel"]["pid"])
    assert again.pid != process.pid and again.is_running()

    run_script("stop_service", "--job-id", job_id)
    assert processes_with(job_id) == [] and brev.containers() == []


def test_the_port_of_a_tunnel_is_on_this_machine_and_on_the_instance_only(brev: BrevDouble) -> None:
    brev.add("mine")
    started = start("--instance", "mine", "--reach", "tunnel")
    assert started["host_url"].startswith("http://localhost:")
    command = ["docker", "inspect", "--format", '{{index .Config.Labels "brev-double-published"}}', started["job_id"]]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "127.0.0.1"
    run_script("stop_service", "--all")


def test_a_login_that_has_expired_is_renewed_and_one_that_is_gone_is_said(brev: BrevDouble) -> None:
    brev.set(expires=time.time() - 1)
    started = start("--create-instance", "yes")
    assert brev.get("renewed") == 1
    brev.set(expires=time.time() - 1)
    run_script("stop_service", "--job-id", started["job_id"], "--delete-instance", "yes")
    assert brev.instances() == {}
    brev.set(logged_in=False)
    refused = run_script("start_service", *LAUNCH, "--create-instance", "yes", expect=1).document["error"]
    assert (refused["type"], refused["fix"]) == ("brev_logged_out", "brev login")
    assert run_script("registry", "list").document["services"] == []
    assert brev.calls("login") == []


def test_no_secret_is_in_any_process_or_file_and_the_container_has_it(
    brev: BrevDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = f"hf_planted_{uuid.uuid4().hex} 'quoted' $HOME \\ ü"
    token = f"brev-{uuid.uuid4().hex}"
    monkeypatch.setenv("HF_TOKEN", planted)
    monkeypatch.setenv("BREV_API_TOKEN", token)
    brev.add("mine", firewalled=True)
    brev.set(run_seconds=0.5)
    with watching_arguments() as seen:
        job_id = start("--instance", "mine", "--env", "HF_TOKEN")["job_id"]
    assert any("--env-file" in line and "docker" in line for line in seen), "the run was watched"
    assert not any("hf_planted" in line or token in line for line in seen)
    shown = subprocess.run(["docker", "exec", job_id, "printenv", "HF_TOKEN"], capture_output=True, text=True)
    assert shown.stdout == planted + "\n"
    assert brev.homes() == []
    assert "hf_planted" not in str(registered(job_id))
    for file in (Path(os.environ["XDG_STATE_HOME"])).rglob("*"):
        assert not file.is_file() or b"hf_planted" not in file.read_bytes()
    run_script("stop_service", "--all")


def test_running_comes_before_sshd_and_is_waited_for(brev: BrevDouble) -> None:
    brev.set(boot_seconds=1.5, sshd_seconds=1.5)
    done = run_script("start_service", *LAUNCH, "--create-instance", "yes")
    assert "is DEPLOYING" in done.stderr and "waiting until commands can be run" in done.stderr
    run_script("stop_service", "--all", "--delete-instance", "yes")


def test_an_instance_that_does_not_come_up_in_time_is_deleted(brev: BrevDouble) -> None:
    brev.set(boot_seconds=60)
    failed = run_script(
        "start_service", *LAUNCH, "--create-instance", "yes", "--instance-timeout", "1", expect=1
    ).document["error"]
    assert failed["type"] == "instance_not_up" and "DEPLOYING" in failed["message"]
    assert brev.instances() == {} and run_script("registry", "list").document["services"] == []


def test_a_service_that_cannot_load_takes_the_instance_that_was_created_for_it_along(brev: BrevDouble) -> None:
    failed = run_script("start_service", *LAUNCH[:-1], "/no/such/model", "--create-instance", "yes", expect=1).document[
        "error"
    ]
    assert failed["log_tail"]
    assert brev.instances() == {}


def test_a_stopped_instance_is_started_only_when_the_user_says_so(brev: BrevDouble) -> None:
    brev.add("mine", status="STOPPED")
    asked = run_script("start_service", *LAUNCH, "--instance", "mine", expect=3).document["needs"]
    assert asked[0]["answer_with"] == "--start-instance yes" and "bills" in asked[0]["question"]
    assert brev.instances()["mine"]["status"] == "STOPPED" and brev.calls("exec") == []
    started = start("--instance", "mine", "--start-instance", "yes")
    brev.change("mine", status="STOPPED")
    state = run_script("registry", "reconcile").document
    assert state["gone"] == [started["job_id"]]
    run_script("stop_service", "--job-id", started["job_id"])
    assert brev.instances()["mine"]["status"] == "STOPPED", "looking does not start it"


def test_a_pull_is_a_step_with_progress_and_a_refused_one_says_how_to_log_in_there(brev: BrevDouble) -> None:
    brev.add("mine")
    image = "nvcr.io/org/private:1"
    brev.set(missing_images=[image], refused_pulls={image: "unauthorized: authentication required"})
    environment = {"IMAGE_SMOLLM2": image}
    refused = run_script("start_service", *LAUNCH, "--instance", "mine", env=environment, expect=1).document["error"]
    assert refused["type"] == "pull_unauthorized"
    assert "ssh mine docker login nvcr.io" in refused["fix"] and "'\\$oauthtoken'" in refused["fix"]
    brev.set(refused_pulls={})
    done = run_script(
        "start_service", *LAUNCH, "--instance", "mine", "--events", env=environment, expect=1, timeout=180
    )
    steps = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    fractions = [step["fraction"] for step in steps if step["stage"] == "pulling" and "fraction" in step]
    assert fractions == sorted(fractions) and len(fractions) >= 2 and fractions[-1] == 1.0
    assert brev.containers() == [], "the double's pull gives no image, so Docker refuses it; nothing is left"


def test_the_image_that_no_registry_serves_is_copied_by_the_users_own_command(brev: BrevDouble) -> None:
    brev.add("mine")
    brev.set(missing_images=[IMAGE])
    refused = run_script("start_service", *LAUNCH, "--instance", "mine", expect=1).document["error"]
    assert refused["fix"] == f"docker save {IMAGE} | ssh mine docker load"


def test_an_account_with_several_credentials_needs_both_ids(brev: BrevDouble) -> None:
    brev.set(needs_credential=True)
    refused = run_script("start_service", *LAUNCH, "--create-instance", "yes", expect=1).document["error"]
    assert "--cloud-cred-id" in refused["message"]
    assert brev.instances() == {}
    start("--create-instance", "yes", "--cloud-cred-id", "cc-1", "--workspace-group-id", "wg-1", "--no-wait")
    run_script("stop_service", "--all", "--delete-instance", "yes")


def test_a_lost_registry_finds_the_service_again_and_its_tunnel_is_opened_when_it_is_asked(brev: BrevDouble) -> None:
    brev.add("mine", firewalled=True)
    brev.add("asleep", status="STOPPED")
    job_id = start("--instance", "mine")["job_id"]
    Path(os.environ["TAO_INF_MS_STATE_FILE"]).unlink()
    assert run_script("registry", "reconcile").document["adopted"] == [job_id]
    assert brev.instances()["asleep"]["status"] == "STOPPED"
    assert "Paris" in run_script("send_request", "--job-id", job_id, *ASK).document["content"]
    run_script("stop_service", "--job-id", job_id)
    assert processes_with(job_id) == []


def test_a_service_whose_instance_was_deleted_behind_our_back_is_gone(brev: BrevDouble) -> None:
    brev.add("mine")
    job_id = start("--instance", "mine")["job_id"]
    subprocess.run(["brev", "delete", "mine"], capture_output=True, check=True)
    assert run_script("registry", "reconcile").document["gone"] == [job_id]
    assert run_script("stop_service", "--job-id", job_id).document["stopped"] == [job_id]


@pytest.mark.parametrize(
    "options", [("--num-gpus", "1"), ("--num-gpus", "2", "--gpu-ids", "0,2")], ids=["count", "ids"]
)
def test_gpus_are_asked_of_the_instances_docker(brev: BrevDouble, options: tuple[str, ...]) -> None:
    brev.add("mine", gpus=4)
    started = start("--instance", "mine", *options)
    command = ["docker", "inspect", "--format", "{{json .HostConfig.DeviceRequests}}", started["job_id"]]
    (request,) = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert request["Capabilities"] == [["gpu"]]
    assert (request["Count"], request["DeviceIDs"] or []) == ((1, []) if len(options) == 2 else (0, ["0", "2"]))
    run_script("stop_service", "--all")


def test_a_container_of_another_start_is_neither_taken_for_ours_nor_removed(brev: BrevDouble) -> None:
    brev.add("mine")
    driver, options = platforms.load("brev"), {"instance": "mine", "reach": "direct"}
    spec = launch_spec(platform="brev", host_port=free_port(), platform_options=options)
    started = driver.start(spec, lambda progress: None)
    with pytest.raises(BadInput) as refused:
        driver.start(dataclasses.replace(spec, host_port=free_port()), lambda progress: None)
    assert refused.value.type == "job_id_in_use"
    assert driver.status(entry_of(spec, started)).state is State.RUNNING
    with pytest.raises(PortTaken):
        driver.start(dataclasses.replace(spec, job_id=str(uuid.uuid4())), lambda progress: None)
    assert brev.containers("mine") == [spec.job_id]


KILLS = {
    "the instance is created": lambda brev: bool(brev.instances()),
    "it runs": lambda brev: any(found["status"] == "RUNNING" for found in brev.instances().values()),
    "Docker was asked": lambda brev: len(brev.calls("exec")) >= 2,
    "the container is there": lambda brev: bool(brev.containers()),
    "the tunnel is being opened": lambda brev: bool(brev.calls("port-forward")),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_start_that_is_killed_leaves_nothing_that_reconcile_does_not_find(brev: BrevDouble, moment: str) -> None:
    brev.set(firewalled=True, boot_seconds=0.5, sshd_seconds=0.5)
    starter = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "start_service.py"), *LAUNCH, "--create-instance", "yes"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: KILLS[moment](brev) or starter.poll() is not None, timeout=60, every=0.01)
        assert starter.poll() is None, "it was killed in the middle"
    finally:
        starter.kill()
        starter.wait()

    def settled() -> bool:
        done = run_script("registry", "reconcile").document
        assert not done["unknown"]
        left = {entry["job_id"]: entry["status"] for entry in done["services"]}
        return set(left.values()) <= {"running"} and sorted(left) == sorted(brev.containers())

    eventually(settled, timeout=30, every=0.2)
    services = run_script("registry", "list").document["services"]
    if services:
        run_script("wait_ready", "--job-id", services[0]["job_id"])
        run_script("stop_service", "--all", "--delete-instance", "yes")
        assert processes_with(services[0]["job_id"]) == []
    assert brev.instances() == {} and brev.containers() == [] and brev.homes() == []


def test_ctrl_c_leaves_nothing_and_deletes_the_instance_that_was_created(brev: BrevDouble) -> None:
    brev.set(boot_seconds=30)
    starter = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "start_service.py"), *LAUNCH, "--create-instance", "yes"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    eventually(lambda: brev.instances(), timeout=30)
    time.sleep(0.5)
    os.killpg(starter.pid, signal.SIGINT)
    printed, _ = starter.communicate(timeout=60)
    assert starter.returncode == 130 and "interrupted" in printed
    assert brev.instances() == {} and run_script("registry", "list").document["services"] == []


def processes_with(job_id: str) -> list[psutil.Process]:
    """The processes of this service's tunnels."""
    return [
        process
        for process in processes_of(os.environ["BREV_DOUBLE_STATE"])
        if "port-forward" in process.cmdline() or "-L" in process.cmdline()
    ]


@contextlib.contextmanager
def watching_arguments() -> Iterator[set[str]]:
    """The command line of every process of this machine that was seen meanwhile."""
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()
