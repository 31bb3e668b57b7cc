"""local-docker's own options: what they mean, and what is refused before Docker is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import local_docker_options as options
import pytest
from docker_engine import launch_spec
from hypothesis import given
from hypothesis import strategies as st

from inference_service import docker_options
from inference_service.contracts import Mount
from inference_service.errors import BadInput


def test_without_options_the_port_is_loopback_only_the_network_is_ours_and_shm_is_8_gib() -> None:
    settings = options.settings(launch_spec(), environ={})
    assert (settings.bind_address, settings.network, settings.shm_bytes) == ("127.0.0.1", "tao_default", 8 * 2**30)
    assert settings.published_to_this_machine_only


def test_the_network_is_the_option_before_the_environment_before_the_default() -> None:
    given_both = launch_spec(platform_options={"network": "mine"})
    assert options.settings(given_both, environ={"DOCKER_NETWORK": "theirs"}).network == "mine"
    assert options.settings(launch_spec(), environ={"DOCKER_NETWORK": "theirs"}).network == "theirs"


def test_options_are_taken_with_dashes_and_with_underscores() -> None:
    for name in ("shm-size", "shm_size"):
        assert options.settings(launch_spec(platform_options={name: "1k"}), environ={}).shm_bytes == 1024


@pytest.mark.parametrize(
    ("text", "size"),
    [("8g", 8 * 2**30), ("512M", 2**29), ("64mb", 2**26), ("1GiB", 2**30), ("2 t", 2**41), ("4096", 4096), ("10b", 10)],
)
def test_a_size_is_read_as_docker_reads_it(text: str, size: int) -> None:
    assert docker_options.size_in_bytes(text) == size


@given(st.text(max_size=8))
def test_any_text_is_a_positive_size_or_refused(text: str) -> None:
    try:
        assert 0 < docker_options.size_in_bytes(text) < 2**63
    except BadInput as error:
        assert repr(text) in error.message


@pytest.mark.parametrize("text", ["", "g", "8x", "-1g", "0", "1.5g", "8g;", "9999999999999t"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is not a size"):
        docker_options.size_in_bytes(text)


def test_gpu_ids_are_indexes_uuids_or_mig_devices() -> None:
    text = "0, GPU-8f6b3c1e-0000-1111-2222-333344445555,1:0,MIG-GPU-8f6b/1/0"
    assert len(docker_options.gpu_ids(text, 4)) == 4
    assert docker_options.gpu_ids(None, 3) == ()


@pytest.mark.parametrize(
    ("text", "num_gpus", "why"),
    [("0,1", 1, "num_gpus is 1"), ("0", 0, "num_gpus is 0"), ("0,0", 2, "twice"), ("a", 1, "'a'"), ("0,", 2, "''")],
)
def test_gpu_ids_that_cannot_be_are_refused(text: str, num_gpus: int, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        docker_options.gpu_ids(text, num_gpus)


def test_the_refusal_of_too_many_gpu_ids_names_the_option_that_mends_it() -> None:
    with pytest.raises(BadInput) as refused:
        docker_options.gpu_ids("0,1,2", 1)
    assert "--num-gpus 3" in refused.value.fix


@pytest.mark.parametrize("text", ["example.com", "256.1.1.1", "", "127.0.0.1:80", "0.0.0.0/0"])
def test_a_bind_address_is_an_ip_address(text: str) -> None:
    with pytest.raises(BadInput, match="is not an IP address"):
        options.bind_address(text)


def test_bind_addresses_are_normalized() -> None:
    assert [options.bind_address(text) for text in ("localhost", "[::1]", "0.0.0.0")] == ["127.0.0.1", "::1", "0.0.0.0"]


@pytest.mark.parametrize("name", ["host", "none", "bridge", "container:abc", "-x", "a b", "ä"])
def test_a_network_without_names_or_ports_is_refused(name: str) -> None:
    with pytest.raises(BadInput):
        docker_options.network_name(name)


@pytest.mark.parametrize("unknown", [{"ipc": "host"}, {"privileged": True}])
def test_an_option_that_is_not_ours_is_refused(unknown: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="has no option"):
        options.settings(launch_spec(platform_options=unknown), environ={})


def test_mounts_are_absolute_and_their_source_exists_where_the_daemon_is_here(tmp_path: Path) -> None:
    missing = Mount(str(tmp_path / "missing"), "/m")
    options.check_mounts([Mount(str(tmp_path), "/m")], on_this_machine=True)
    options.check_mounts([missing], on_this_machine=False)
    with pytest.raises(BadInput, match="does not exist"):
        options.check_mounts([missing], on_this_machine=True)
    for mount in (Mount("relative", "/m"), Mount(str(tmp_path), "m"), Mount(str(tmp_path), "/")):
        with pytest.raises(BadInput):
            options.check_mounts([mount], on_this_machine=True)
