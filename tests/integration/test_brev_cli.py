"""The brev command as the driver calls it, against the double that behaves as brev does (see tests/doubles/brev)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import brev_cli
import brev_reaching
import brev_tunnel
import pytest
from brev_double import LAUNCH, BrevDouble, brev
from support import SCRIPTS, eventually, run_script

from inference_service import ports, processes
from inference_service.errors import ToolError

__all__ = ["brev"]


def test_a_command_is_one_argument_and_its_output_has_no_name_behind_it(brev: BrevDouble) -> None:
    brev.add("mine")
    done = brev_cli.execute("mine", "echo one; printf two", by_brev=True)
    assert (done.status, done.output) == (0, "one\ntwo")
    assert brev_cli.execute("mine", "printf 'a\\n\\n'", by_brev=True).output == "a\n"
    assert brev_cli.execute("mine", "true", by_brev=True).output == ""
    assert all(len(call) == 3 and call[1] == "mine" for call in brev.calls("exec"))


def test_brevs_own_way_of_printing_is_what_the_double_does(brev: BrevDouble) -> None:
    brev.add("mine")
    plain = subprocess.run(["brev", "exec", "mine", "echo x"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert plain.stdout == "x\nmine\n"
    split = subprocess.run(
        ["brev", "exec", "mine", "--", "docker", "ps"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert split.returncode != 0, "`docker` is taken for an instance"
    piped = subprocess.run(["brev", "exec", "mine", "echo x"], capture_output=True, text=True, input="HF_TOKEN=v\n")
    assert piped.returncode != 0 and "HF_TOKEN=v" in piped.stderr, "standard input is taken for instances"


def test_a_script_that_fails_is_run_once_and_says_its_status(brev: BrevDouble, tmp_path: Path) -> None:
    brev.add("mine")
    runs = tmp_path / "runs"
    done = brev_cli.execute("mine", f"echo run >>{runs}; echo said; echo wrong >&2; exit 3", by_brev=True)
    assert (done.status, done.output) == (3, "said")
    assert "wrong" in done.errors and runs.read_text() == "run\n"


def test_what_is_fed_goes_through_ssh_and_arrives_whole(brev: BrevDouble) -> None:
    brev.add("mine")
    fed = b"HF_TOKEN=" + b"x" * 200_000 + b"\n"
    assert brev_cli.execute("mine", "wc --bytes", fed).output.split() == [str(len(fed))]
    assert brev.calls("exec") == []


def test_an_instance_that_cannot_be_reached_or_does_not_answer_in_time_is_an_error(brev: BrevDouble) -> None:
    with pytest.raises(ToolError) as unreachable:
        brev_cli.execute("nobody", "true")
    assert unreachable.value.type == "instance_unreachable"
    brev.add("mine")
    began = time.monotonic()
    with pytest.raises(ToolError) as late:
        brev_cli.execute("mine", "sleep 20", timeout=0.7)
    assert late.value.type == "brev_timeout" and time.monotonic() - began < 10


def test_looking_at_a_stopped_instance_does_not_start_it(brev: BrevDouble) -> None:
    brev.add("mine", status="STOPPED")
    with pytest.raises(ToolError):
        brev_cli.execute("mine", "true")
    assert brev.instances()["mine"]["status"] == "STOPPED"


def test_an_account_without_instances_is_listed_as_none_and_the_address_comes_from_ssh(brev: BrevDouble) -> None:
    assert brev_cli.instances() == {}
    added = brev.add("mine")
    found = brev_cli.find(added["id"])
    assert found is not None and (found.name, found.gpu, found.running) == ("mine", "L40S", True)
    assert brev_cli.address("mine") == added["address"]
    brev.change("mine", ssh_config=False)
    assert brev_cli.address("mine") is None


def test_a_login_is_renewed_by_listing_once_and_without_one_the_fix_is_to_log_in(brev: BrevDouble) -> None:
    brev.set(expires=time.time() - 5)
    brev_cli.command("refresh")
    assert brev.get("renewed") == 1
    brev.set(logged_in=False)
    with pytest.raises(ToolError) as refused:
        brev_cli.instances()
    assert (refused.value.type, refused.value.fix) == ("brev_logged_out", "brev login")


@pytest.mark.parametrize("stays", [False, True])
def test_a_tunnel_is_known_by_the_process_that_has_its_port_and_ends_with_all_that_belongs_to_it(
    brev: BrevDouble, stays: bool
) -> None:
    brev.set(port_forward_stays=stays)
    brev.add("mine")
    job_id, port = str(uuid.uuid4()), 18000 + os.getpid() % 10000
    opened = brev_tunnel.start(job_id, "mine", port, 8080)
    assert processes.is_same(opened["pid"], opened["started"]) and brev_tunnel.is_open(opened, port)
    assert not brev_tunnel.is_open({**opened, "started": opened["started"] - 60}, port), "another process of that pid"
    brev_tunnel.end(job_id)
    assert not processes.is_same(opened["pid"], opened["started"])
    eventually(lambda: not brev_tunnel.accepts("127.0.0.1", port), timeout=5)
    brev_tunnel.end(job_id)


def test_a_tunnel_that_cannot_open_says_what_brev_said_and_leaves_nothing(brev: BrevDouble) -> None:
    with pytest.raises(ToolError) as failed:
        brev_tunnel.start(str(uuid.uuid4()), "nobody", 18000 + os.getpid() % 10000, 8080)
    assert failed.value.type == "tunnel_not_opened" and "nobody" in failed.value.message


def test_a_port_of_this_machine_that_is_taken_meanwhile_is_left_and_another_is_used(
    brev: BrevDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    brev.add("mine")
    job_id = str(uuid.uuid4())
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        looked: list[int] = []
        free = ports.can_bind

        def free_but_late(port: int, address: str) -> bool:
            looked.append(port)
            return port == taken or free(port, address)

        monkeypatch.setattr(ports, "can_bind", free_but_late)
        url, fields = brev_reaching.open_tunnel(job_id, "mine", taken)
    try:
        assert looked[0] == taken != fields["local_port"]
        assert url == f"http://localhost:{fields['local_port']}"
        assert brev.calls("port-forward")[-1][-1] == f"{fields['local_port']}:{taken}"
    finally:
        brev_tunnel.end(job_id)


def test_the_preflight_names_what_is_there_and_what_mends_what_is_not(brev: BrevDouble, tmp_path: Path) -> None:
    brev.add("mine")
    brev.add("asleep", status="STOPPED")
    checks = {check["name"]: check for check in run_script("preflight", "--platform", "brev").document["checks"]}
    assert {"brev", "ssh", "login", "instances"} <= set(checks)
    assert "mine (RUNNING, g6e.xlarge, L40S)" in checks["instances"]["found"]
    assert "L40S" in checks["docker on mine"]["found"] and "docker on asleep" not in checks
    assert brev.instances()["asleep"]["status"] == "STOPPED" and brev.calls("exec") == []
    token = {"BREV_API_TOKEN": "planted-token-value"}
    brev.set(logged_in=False)
    done = run_script("preflight", "--platform", "brev", env=token, expect=1)
    assert done.document["error"]["fix"] == "brev login"
    assert "BREV_API_TOKEN is set" in done.stdout and "planted-token-value" not in done.stdout
    error = run_script("preflight", "--platform", "brev", env={"PATH": str(tmp_path)}, expect=1).document["error"]
    assert "brev login" in error["fix"] and error["checks"][0]["name"] == "brev"


def test_an_instance_that_is_named_has_to_be_there_and_nothing_is_registered(brev: BrevDouble) -> None:
    brev.add("mine")
    refused = run_script("start_service", *LAUNCH, "--instance", "yours", expect=2).document["error"]
    assert refused["type"] == "no_such_instance" and "mine" in refused["fix"]
    refused = run_script("start_service", *LAUNCH, "--create-instance", "no", expect=2).document["error"]
    assert refused["type"] == "no_instance"
    assert run_script("registry", "list").document["services"] == [] and brev.calls("create") == []


def test_an_instance_with_too_few_gpus_is_refused_before_its_image_is_pulled(brev: BrevDouble) -> None:
    brev.add("mine", gpus=1)
    refused = run_script("start_service", *LAUNCH, "--instance", "mine", "--num-gpus", "2", expect=1)
    assert refused.document["error"]["type"] == "too_few_gpus" and "pulling" not in refused.stderr


def test_at_a_terminal_the_question_is_asked_and_its_answer_is_an_option(brev: BrevDouble) -> None:
    brev.set(no_capacity=True)
    ours, theirs = os.openpty()
    starter = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "start_service.py"), *LAUNCH, "--json"],
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    os.write(ours, b"1\n")
    shown = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(ours, 4096):
            shown += chunk
    printed, _ = starter.communicate(timeout=60)
    os.close(ours)
    assert b"Create one? It bills until it is deleted." in shown
    assert "could only create 0/1" in json.loads(printed)["error"]["message"], "yes was the answer"
    assert len(brev.calls("create")) == 1


def test_what_is_missing_is_asked_together_and_the_options_are_in_the_help(brev: BrevDouble) -> None:
    brev.add("mine")
    need = run_script("start_service", *LAUNCH, expect=3).document["needs"][0]
    assert need["options"][0] == {"instance": "mine", "status": "RUNNING", "instance_type": "g6e.xlarge", "gpu": "L40S"}
    assert "bills" in need["options"][-1]["status"]
    shown = run_script("start_service", "--platform", "brev", "--help").stdout
    assert "--create-instance" in shown and "bills" in shown
