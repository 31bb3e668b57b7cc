"""Docker's words, as several of its versions say them, and what we tell the user instead."""

from __future__ import annotations

import local_docker_options as options
import pytest
from docker_engine import launch_spec

from inference_service import docker_container as container
from inference_service import docker_errors as errors
from inference_service import docker_images, references
from inference_service.errors import BadInput, PortTaken


def plan(num_gpus: int = 1) -> container.Plan:
    spec = launch_spec(num_gpus=num_gpus, host_port=8080)
    return container.plan(spec, options.settings(spec, environ={}), tegra=False, owner="me")


@pytest.mark.parametrize(
    "said",
    [
        "driver failed programming external connectivity on endpoint x (1f): Bind for 127.0.0.1:8080 failed: port is"
        " already allocated",
        "driver failed programming external connectivity on endpoint x (1f): Error starting userland proxy: listen tcp4"
        " 127.0.0.1:8080: bind: address already in use",
        "failed to set up container networking: driver failed programming external connectivity on endpoint x: failed"
        " to bind host port 127.0.0.1:8080/tcp: address already in use",
    ],
)
def test_a_taken_port_is_told_so_that_the_starter_chooses_another(said: str) -> None:
    error = errors.start_error(said, plan())
    assert isinstance(error, PortTaken)
    assert error.port == 8080


@pytest.mark.parametrize(
    ("said", "type", "fix"),
    [
        (
            'could not select device driver "" with capabilities: [[gpu]]',
            "gpu_toolkit_missing",
            "nvidia-container-toolkit",
        ),
        ("unknown or invalid runtime name: nvidia", "gpu_toolkit_missing", "nvidia-ctk runtime configure"),
        (
            "OCI runtime create failed: nvidia-container-cli: device error: 7: unknown device: unknown",
            "gpu_not_found",
            "nvidia-smi -L",
        ),
        (
            "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1",
            "gpu_driver_broken",
            "nvidia-smi",
        ),
        ("write /var/lib/docker/x: no space left on device", "disk_full", "docker system df"),
        ("something new", "container_not_started", "preflight.py"),
    ],
)
def test_a_refused_start_says_what_mends_it(said: str, type: str, fix: str) -> None:
    error = errors.start_error(said, plan())
    assert error.type == type
    assert fix in error.fix


def test_words_of_gpus_mean_nothing_where_none_were_asked_for() -> None:
    assert errors.start_error("nvidia-container-cli: device error", plan(num_gpus=0)).type == "container_not_started"


def test_what_the_user_wrote_wrongly_is_bad_input() -> None:
    no_address = "driver failed: listen tcp4 10.9.9.9:8080: bind: cannot assign requested address"
    no_mount = 'invalid mount config for type "bind": bind source path does not exist: /data/x'
    assert isinstance(errors.start_error(no_address, plan()), BadInput)
    mount = errors.start_error(no_mount, plan())
    assert isinstance(mount, BadInput)
    assert "/data/x" in mount.message


@pytest.mark.parametrize(
    ("said", "type"),
    [
        ("pull access denied for x, repository does not exist or may require 'docker login'", "pull_unauthorized"),
        (
            'Head "https://nvcr.io/v2/x/manifests/1": unauthorized: <html>401 Authorization Required',
            "pull_unauthorized",
        ),
        ('Get "http://127.0.0.1:5000/v2/": no basic auth credentials', "pull_unauthorized"),
        ("error from registry: 403 Forbidden", "pull_unauthorized"),
        ("manifest for nvcr.io/nvidia/tao/x:1 not found: manifest unknown: manifest unknown", "image_not_found"),
        ('Get "https://nvcr.io/v2/": dial tcp: lookup nvcr.io on 10.0.0.2:53: no such host', "registry_unreachable"),
        ('Get "https://nvcr.io/v2/": net/http: TLS handshake timeout', "registry_unreachable"),
        ("failed to register layer: write /x: no space left on device", "disk_full"),
        ("toomanyrequests: You have reached your pull rate limit", "pull_rate_limited"),
        ("invalid reference format", "bad_image"),
        ("something new", "pull_failed"),
    ],
)
def test_a_failed_pull_says_why(said: str, type: str) -> None:
    error = errors.pull_error(said, "nvcr.io/nvidia/tao/x:1", "nvcr.io")
    assert error.type == type
    assert error.fix


def test_an_unauthorized_pull_from_ngc_gives_the_login_that_shows_no_key() -> None:
    fix = errors.pull_error("unauthorized", "nvcr.io/a:1", "nvcr.io").fix
    assert fix == """printf %s "$NGC_KEY" | docker login nvcr.io --username '$oauthtoken' --password-stdin"""
    assert (
        errors.pull_error("unauthorized", "r.example:5000/a:1", "r.example:5000").fix == "docker login r.example:5000"
    )


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("nvcr.io/nvidia/tao/tao-toolkit:1", "nvcr.io"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000"),
        ("localhost/x", "localhost"),
        ("tao-inference-service/smollm2:1", "docker.io"),
        ("python", "docker.io"),
    ],
)
def test_the_registry_of_an_image_is_the_host_in_its_name(image: str, registry: str) -> None:
    assert docker_images.registry_of(image) == registry


def test_an_image_that_is_built_here_is_never_asked_of_docker_hub() -> None:
    refs = references.load()
    pinned = refs.images.pins["inference_service.smollm2"]
    assert docker_images.build_command(pinned, "smollm2", refs) == "docker build --tag {image} ."
    assert docker_images.build_command("my-own/smollm2:dev", "smollm2", refs) is not None
    assert docker_images.build_command("nvcr.io/org/smollm2:1", "smollm2", refs) is None
    assert docker_images.build_command("nvcr.io/nvidia/tao/tao-toolkit:1", "cosmos-rl", refs) is None


def test_a_taken_name_says_whether_it_is_one_of_ours() -> None:
    ours = errors.name_taken(plan(), "running", plan().name)
    theirs = errors.name_taken(plan(), "running", None)
    assert theirs.type == "container_name_taken"
    assert ours.type == "container_name_taken", "another job's label is not ours"
    same = plan()
    assert errors.name_taken(same, "exited", same.name).type == "job_id_in_use"
