"""From an arch to its image (seed 2)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import run_script

from inference_service import images, references
from inference_service.errors import BadInput
from inference_service.references import References

REFS = references.load()


def with_mapping(**mapping: str) -> References:
    return replace(REFS, images=replace(REFS.images, mapping={**REFS.images.mapping, **mapping}))


@pytest.mark.parametrize(
    ("arch", "key", "image"),
    [
        ("cosmos-rl", "COSMOS_RL", "nvcr.io/nvidia/tao/tao-toolkit:7.0.1-cosmos-rl"),
        ("cosmos-predict2.5", "COSMOS_PREDICT2_5", "nvcr.io/nvidia/tao/tao-toolkit:7.0.1-cosmos-predict"),
        ("tao-dataservices", "TAO_DATASERVICES", "nvcr.io/nvidia/tao/tao-toolkit:7.1.0-data-services"),
    ],
)
def test_a_dotted_key_is_looked_up_in_versions_yaml(arch: str, key: str, image: str) -> None:
    resolved = images.resolve(arch, REFS, {})
    assert (resolved.key, resolved.image, resolved.build_command) == (key, image, None)
    assert "versions.yaml" in resolved.source


@pytest.mark.parametrize(
    "uri", ["nvcr.io/x/y:1", "myimage:1", "x/y", "image@sha256:" + "0" * 64, "localhost:5000/a/b.c"]
)
def test_an_override_that_is_an_absolute_uri_passes_through_unchanged(uri: str) -> None:
    resolved = images.resolve("cosmos-rl", REFS, {"IMAGE_COSMOS_RL": uri})
    assert (resolved.image, resolved.source) == (uri, "environment variable IMAGE_COSMOS_RL")


def test_an_override_may_be_a_dotted_key() -> None:
    resolved = images.resolve("cosmos-rl", REFS, {"IMAGE_COSMOS_RL": "inference_service.smollm2"})
    assert resolved.image == REFS.images.pins["inference_service.smollm2"]
    assert resolved.build_command == f"docker build --tag {resolved.image} ."


@pytest.mark.parametrize("environ", [{"IMAGE_COSMOS_RL": ""}, {"IMAGE_COSMOS_RL": "  "}, {"IMAGE_SMOLLM2": "x:1"}])
def test_an_empty_override_and_one_of_another_key_change_nothing(environ: dict[str, str]) -> None:
    assert images.resolve("cosmos-rl", REFS, environ).image == REFS.images.pins["tao_toolkit.cosmos_rl"]


def test_an_absolute_uri_in_the_mapping_passes_through_unchanged() -> None:
    resolved = images.resolve("cosmos-rl", with_mapping(COSMOS_RL="registry.example/a:1"), {})
    assert (resolved.image, resolved.build_command) == ("registry.example/a:1", None)


@pytest.mark.parametrize("value", ["tao_toolkit.nothing", "cosmos_rl", "myimage"])
def test_a_dotted_key_that_leads_nowhere_lists_those_that_exist(value: str) -> None:
    with pytest.raises(BadInput) as caught:
        images.resolve("cosmos-rl", REFS, {"IMAGE_COSMOS_RL": value})
    assert repr(value) in caught.value.message
    assert "tao_toolkit.cosmos_rl" in caught.value.fix


def test_an_image_key_that_the_mapping_lacks_lists_those_it_has_unless_it_is_overridden() -> None:
    arch = replace(REFS.archs["cosmos-rl"], image_key="NOTHING")
    refs = replace(REFS, archs={"cosmos-rl": arch})
    with pytest.raises(BadInput, match="'NOTHING' is not in docker_image_defaults") as caught:
        images.resolve("cosmos-rl", refs, {})
    assert "COSMOS_RL" in caught.value.fix
    assert images.resolve("cosmos-rl", refs, {"IMAGE_NOTHING": "a:1"}).image == "a:1"


@pytest.mark.parametrize("uri", ["--privileged/x", "a/b c", "a/b\nc", "registry/<name>:1", "a/\u200bb", "a/\x1b[0m"])
def test_what_cannot_be_an_image_is_refused(uri: str) -> None:
    with pytest.raises(BadInput, match="IMAGE_COSMOS_RL"):
        images.resolve("cosmos-rl", REFS, {"IMAGE_COSMOS_RL": uri})


names = st.from_regex(r"[a-z0-9]+([._-][a-z0-9]+)*", fullmatch=True)


@given(path=st.lists(names, min_size=1, max_size=4), tag=st.none() | names, digest=st.booleans())
def test_every_reference_with_a_path_a_tag_or_a_digest_passes_through(
    path: list[str], tag: str | None, digest: bool
) -> None:
    uri = "/".join(path) + (f":{tag}" if tag else "") + ("@sha256:" + "a" * 64 if digest else "")
    absolute = len(path) > 1 or tag is not None or digest
    assert images.is_absolute_uri(uri) == absolute
    if absolute:
        assert images.resolve("smollm2", REFS, {"IMAGE_SMOLLM2": uri}).image == uri


@given(names)
def test_what_has_none_of_them_is_a_key_and_is_found_or_refused(value: str) -> None:
    try:
        assert images.resolve("smollm2", REFS, {"IMAGE_SMOLLM2": value}).image == REFS.images.pins[value]
    except BadInput as error:
        assert value not in REFS.images.pins
        assert error.type == "unknown_image"


def test_the_script_says_image_key_source_and_how_to_build_it() -> None:
    document = run_script("resolve_image", "--network-arch", "smollm2").document
    assert document["key"] == "SMOLLM2"
    assert document["build"].endswith(f"{document['image']} .")
    overridden = run_script("resolve_image", "--network-arch", "smollm2", env={"IMAGE_SMOLLM2": "x/y:2"}).document
    assert (overridden["image"], "build" in overridden) == ("x/y:2", False)


def test_the_script_refuses_an_arch_that_does_not_exist_and_lists_those_that_do() -> None:
    error = run_script("resolve_image", "--network-arch", "nothing", expect=2).document["error"]
    assert "smollm2" in error["fix"]
