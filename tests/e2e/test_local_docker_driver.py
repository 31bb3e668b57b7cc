"""The local-docker driver on a real engine: what it makes, what its log and state are, and how it ends."""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from docker_engine import BASE_IMAGE, SERVE, Engine, answers, entry_of, launch_spec
from support import eventually, need_engine

from inference_service import paths, platforms
from inference_service.contracts import Mount, State
from inference_service.errors import BadInput, ToolError

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.xdist_group("docker")]


def test_a_container_is_made_as_asked_and_answers_on_loopback(engine: Engine, network: str) -> None:
    spec, started = engine.start(platform_options={"network": network, "shm-size": "64m"})
    made = engine.inspect(spec.job_id)
    assert started.host_url == f"http://localhost:{spec.host_port}"
    assert made["HostConfig"]["PortBindings"] == {
        "8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(spec.host_port)}]
    }
    ours = {name: value for name, value in made["Config"]["Labels"].items() if name.startswith("tao-")}
    assert ours == {
        "tao-job-id": spec.job_id,
        "tao-network-arch": "smollm2",
        "tao-model-path": spec.model_path,
        "tao-registry": paths.registry_owner(),
    }
    assert made["HostConfig"]["ShmSize"] == 64 * 2**20
    assert made["HostConfig"]["IpcMode"] != "host"
    assert made["HostConfig"]["AutoRemove"] is False
    assert made["HostConfig"]["Privileged"] is False
    assert not made["HostConfig"]["DeviceRequests"]
    assert "TAO_API_JOB_ID=j" in made["Config"]["Env"]
    assert list(made["NetworkSettings"]["Networks"]) == [network]
    assert eventually(lambda: answers(started.host_url))
    assert engine.driver.status(entry_of(spec, started)).state is State.RUNNING


def test_the_dev_shm_in_the_container_has_the_size_that_was_asked_for(engine: Engine) -> None:
    spec, _ = engine.start(command="df -B1 --output=size /dev/shm", platform_options={"shm-size": "32m"})
    assert [line.strip() for line in engine.log(spec)] == ["1B-blocks", str(32 * 2**20)]


def test_the_image_s_own_entry_point_does_not_get_in_the_way(engine: Engine) -> None:
    tag = f"tao-test/entrypoint:{uuid.uuid4().hex[:8]}"
    container = engine.api.create_container(BASE_IMAGE, ["true"])["Id"]
    engine.api.commit(container, repository=tag, changes='ENTRYPOINT ["/bin/false"]')
    engine.api.remove_container(container)
    try:
        spec, _ = engine.start(image=tag, command='umask 0 && echo it\'s ${SHELL:+fine} "and quoted"')
        engine.log(spec)
        spec, _ = engine.start(image=tag, command="umask 0 && printf '%s\\n' \"it's $((1 + 1))\"")
        assert engine.log(spec) == ["it's 2"]
    finally:
        for name in engine.ours():
            engine.api.remove_container(name, force=True)
        engine.api.remove_image(tag, force=True)


def test_a_secret_reaches_the_container_and_nothing_else(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = f"hf_{uuid.uuid4().hex}"
    monkeypatch.setenv("HF_TOKEN", secret)
    command = "umask 0 && python3 -c \"import os; print(len(os.environ['HF_TOKEN']))\" && exec sleep 60"
    spec, started = engine.start(secret_env=("HF_TOKEN",), command=command)
    assert eventually(lambda: list(engine.driver.logs(entry_of(spec), None, follow=False))) == [str(len(secret))]
    made = engine.inspect(spec.job_id)
    assert secret not in json.dumps([made["Config"]["Cmd"], made["Config"]["Labels"], made["Args"], made["Path"]])
    assert secret not in repr(started) + repr(engine.reported)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            assert secret.encode() not in (process / "cmdline").read_bytes()
        except OSError:
            continue


def test_a_secret_that_is_not_set_is_refused_before_anything_is_made(engine: Engine) -> None:
    with pytest.raises(BadInput, match="HF_TOKEN"):
        engine.start(secret_env=("HF_TOKEN",))
    assert engine.ours() == []


@pytest.fixture
def gpu_requests(engine: Engine) -> None:
    try:
        spec, started = engine.start(num_gpus=1, command="true")
    except ToolError as error:
        need_engine("docker", error.type != "gpu_toolkit_missing", f"the engine takes no GPU requests: {error.message}")
        raise
    engine.driver.stop(entry_of(spec, started))


@pytest.mark.usefixtures("gpu_requests")
@pytest.mark.parametrize(
    ("num_gpus", "platform_options", "count", "ids", "visible"),
    [(1, {}, 1, None, "0"), (2, {}, 2, None, "0,1"), (2, {"gpu-ids": "1,3"}, 0, ["1", "3"], "1,3")],
)
def test_gpus_are_requested_by_count_or_by_ids(
    engine: Engine, num_gpus: int, platform_options: dict[str, str], count: int, ids: list[str] | None, visible: str
) -> None:
    spec, started = engine.start(
        num_gpus=num_gpus, platform_options=platform_options, command="echo $NVIDIA_VISIBLE_DEVICES; exec sleep 60"
    )
    (request,) = engine.inspect(spec.job_id)["HostConfig"]["DeviceRequests"]
    assert (request["Count"], request["DeviceIDs"] or None) == (count, ids)
    assert request["Capabilities"] == [["gpu"]]
    assert eventually(lambda: list(engine.driver.logs(entry_of(spec), None, follow=False))) == [visible]
    assert [service.num_gpus for service in engine.driver.discover()] == [num_gpus]
    assert started.num_gpus == num_gpus


def test_the_nvidia_runtime_that_is_missing_is_told_with_the_commands_that_install_it(engine: Engine) -> None:
    if "nvidia" in engine.api.info()["Runtimes"]:
        pytest.skip("this engine has the NVIDIA runtime")
    with pytest.raises(ToolError) as missing:
        engine.start(num_gpus=1, platform_options={"gpu-mode": "nvidia-runtime"})
    assert missing.value.type == "gpu_toolkit_missing"
    assert "nvidia-ctk runtime configure" in missing.value.fix
    assert engine.ours() == []


def test_a_mount_is_read_only_unless_asked_otherwise(engine: Engine, tmp_path: Path) -> None:
    for name in ("ro", "rw"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    spec, _ = engine.start(
        mounts=(Mount(f"{tmp_path}/ro", "/ro"), Mount(f"{tmp_path}/rw", "/rw", read_only=False)),
        command="cat /ro/weights && echo && touch /rw/new; touch /ro/new",
    )
    assert sorted(engine.log(spec)) == ["ro", "touch: cannot touch '/ro/new': Read-only file system"]
    assert (tmp_path / "rw" / "new").exists()
    assert not (tmp_path / "ro" / "new").exists()


def test_a_container_that_dies_at_once_is_told_with_its_exit_code_and_keeps_its_log(engine: Engine) -> None:
    spec, started = engine.start(command="umask 0 && echo no model >&2 && exit 7")
    entry = entry_of(spec, started)
    eventually(lambda: engine.driver.status(entry).dead)
    assert engine.driver.status(entry).reason == "the container ended with exit code 7"
    assert list(engine.driver.logs(entry, 10, follow=False)) == ["no model"]
    assert engine.driver.discover() == []
    engine.driver.stop(entry)
    assert engine.ours() == []


def test_stop_is_quick_idempotent_and_safe_from_two_sides_at_once(engine: Engine) -> None:
    spec, started = engine.start()
    entry = entry_of(spec, started)
    before = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        for stopping in [pool.submit(platforms.load("local-docker").stop, entry) for _ in range(2)]:
            stopping.result()
    assert time.monotonic() - before < 8, "TERM did not reach the server"
    engine.driver.stop(entry)
    assert engine.driver.status(entry).state is State.EXITED
    assert engine.ours() == []


def test_a_paused_container_is_stopped_too(engine: Engine) -> None:
    spec, started = engine.start()
    engine.api.pause(spec.job_id)
    assert engine.driver.status(entry_of(spec, started)).reason == "paused"
    engine.driver.stop(entry_of(spec, started))
    assert engine.ours() == []


def test_a_service_is_found_on_its_daemon_although_docker_host_names_another_now(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, started = engine.start()
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    driver = platforms.load("local-docker")
    assert driver.status(entry_of(spec, started)).state is State.RUNNING
    driver.stop(entry_of(spec, started))
    assert engine.ours() == []


def test_logs_follow_a_container_until_it_ends_and_tail_counts_lines(engine: Engine) -> None:
    spec, _ = engine.start(
        command="for i in 1 2 3 4; do echo line $i; sleep 0.3; done; printf 'h\\303\\251 \\377\\n'; sleep 0.5"
    )
    arrived: list[tuple[float, str]] = []
    for line in engine.driver.logs(entry_of(spec), None, follow=True):
        arrived.append((time.monotonic(), line))
    assert [line for _, line in arrived] == ["line 1", "line 2", "line 3", "line 4", "hé \ufffd"]
    assert arrived[3][0] - arrived[0][0] > 0.5, "the lines came all at once"
    assert list(engine.driver.logs(entry_of(spec), 2, follow=False)) == ["line 4", "hé \ufffd"]
    assert list(engine.driver.logs(entry_of(spec), 0, follow=False)) == []


def test_the_log_of_a_container_that_is_not_there_is_an_error(engine: Engine) -> None:
    with pytest.raises(ToolError, match="there is no container"):
        list(engine.driver.logs(entry_of(launch_spec()), None, follow=False))


def test_discover_gives_back_what_start_gave_and_only_to_its_own_registry(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, started = engine.start(max_hours=1.0)
    assert started.stop_after
    (found,) = engine.driver.discover()
    same = (
        "job_id",
        "network_arch",
        "platform",
        "host_url",
        "image",
        "model_path",
        "host_port",
        "docker_url",
        "stop_after",
        "extras",
    )
    assert {name: getattr(found, name) for name in same} == {name: getattr(started, name) for name in same}
    with monkeypatch.context() as another_user:
        another_user.setenv("TAO_INF_MS_STATE_FILE", "/tmp/another-registry.json")
        assert engine.driver.discover() == []


def test_containers_reach_each_other_by_docker_url(engine: Engine, network: str) -> None:
    options = {"network": network}
    server, started = engine.start(platform_options=options)
    eventually(lambda: answers(started.host_url))
    fetch = f"import urllib.request as u; print(u.urlopen('{started.docker_url}').status)"
    client, _ = engine.start(platform_options=options, command=f'python3 -c "{fetch}"')
    assert engine.log(client) == ["200"]
    assert started.docker_url == f"http://{server.job_id}:8080"


def test_a_daemon_behind_ssh_is_used_through_the_users_own_ssh(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("paramiko")
    need_engine("docker", shutil.which("docker") is not None, "the docker command is not installed")
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    # What sshd would do with the command that the docker package sends; `ssh -G` resolves the alias.
    ssh.write_text(
        "#!/bin/sh\nunset DOCKER_HOST\n"
        '[ "$1" = -G ] && exec echo hostname 127.0.0.1\n'
        "for last; do :; done\nexec $last\n"
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(ssh.parent), prepend=":")
    monkeypatch.setenv("DOCKER_HOST", "ssh://me@alias")
    engine.driver = platforms.load("local-docker")
    spec, started = engine.start(platform_options={"bind-address": "0.0.0.0"}, command=f"echo hello; {SERVE}")
    assert started.host_url == f"http://127.0.0.1:{spec.host_port}"
    eventually(lambda: answers(started.host_url))
    assert "hello" in list(engine.driver.logs(entry_of(spec, started), None, follow=False))
    engine.driver.stop(entry_of(spec, started))
    assert engine.ours() == []


def test_the_preflight_of_a_running_engine_passes(engine: Engine) -> None:
    checks = {check.name: check for check in engine.driver.preflight()}
    assert checks["docker daemon"].ok
    assert engine.api.version()["Version"] in checks["docker daemon"].found
    assert set(checks) == {"docker package", "docker daemon", "gpus", "disk", "registry login"}


def test_status_is_asked_by_many_threads_at_once(engine: Engine) -> None:
    spec, started = engine.start()
    entry, states = entry_of(spec, started), []
    threads = [threading.Thread(target=lambda: states.append(engine.driver.status(entry).state)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states == [State.RUNNING] * 8
