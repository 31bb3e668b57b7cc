"""The reference data: what breaks a rule is named by file, key and rule, and what one file says of another is true."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference_service import images, paths, payload, reference_validation, references
from inference_service.errors import BadInput, ToolError
from inference_service.references import References

Edit = Callable[[dict[str, Any]], None]
SEED_KEYS = {
    "service": (
        "valid_network_arch_config_basenames",
        "docker_image_defaults",
        "model_path_protocols",
        "container_commands",
        "secrets_handling",
    ),
    "request": ("chat_completions_request_body", "network_arch_constraints", "container_response_shapes"),
    "code-templates": (
        "job_payload_builder",
        "registry_write",
        "readiness_check",
        "request",
        "stop",
        "image_resolution",
    ),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(paths.REFERENCES, tmp_path / "references")
    return tmp_path / "references"


def edit(file: Path, change: Edit) -> None:
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    change(document)
    file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def breaks(copy: Path, file: str, change: Edit) -> ToolError:
    edit(copy / file, change)
    with pytest.raises(ToolError) as caught:
        references.load(copy)
    assert str(copy / file) in caught.value.message
    return caught.value


def test_every_listed_arch_can_be_started_from_the_data_as_delivered() -> None:
    refs = references.load()
    assert set(refs.archs) == {"cosmos-rl", "cosmos-predict2.5", "tao-dataservices", "smollm2", "claude"}
    assert refs.unsupported == ()


@pytest.mark.parametrize("file", SEED_KEYS)
def test_the_seeds_keys_keep_their_names(file: str) -> None:
    document = yaml.safe_load((paths.REFERENCES / f"{file}.yaml").read_text(encoding="utf-8"))
    assert set(SEED_KEYS[file]) <= set(document)


@pytest.mark.parametrize(
    ("file", "change", "key", "rule"),
    [
        ("service.yaml", lambda d: d["platforms"]["slurm"].update(gpus=1), "platforms.slurm", "additionalProperties"),
        (
            "service.yaml",
            lambda d: d["container_commands"]["smollm2"].pop("argv"),
            "container_commands.smollm2",
            "required",
        ),
        ("service.yaml", lambda d: d.update(container_port="8080"), "container_port", "type"),
        ("service.yaml", lambda d: d["container_commands"]["smollm2"].update(style="shell"), "smollm2.style", "enum"),
        ("service.yaml", lambda d: d["env_vars"]["allowed"].append("lower case"), "env_vars.allowed", "pattern"),
        ("service.yaml", lambda d: d.update(cloud_based="True"), "cloud_based", "const"),
        (
            "service.yaml",
            lambda d: d["container_commands"]["cosmos-predict2.5"].pop("model_path_flag"),
            "container_commands.cosmos-predict2.5",
            "required",
        ),
        ("request.yaml", lambda d: d.update(request_timeout_seconds=60), "request_timeout_seconds", "minimum"),
        ("request.yaml", lambda d: d["retry"].update(first_seconds=0), "retry.first_seconds", "exclusiveMinimum"),
        (
            "request.yaml",
            lambda d: d["network_arch_constraints"]["smollm2"].update(answer="poem"),
            "network_arch_constraints.smollm2.answer",
            "enum",
        ),
        (
            "request.yaml",
            lambda d: d["container_response_shapes"].update({200: {}}),
            "container_response_shapes.200",
            "type",
        ),
    ],
)
def test_a_broken_rule_is_named_by_file_key_and_rule(copy: Path, file: str, change: Edit, key: str, rule: str) -> None:
    message = breaks(copy, file, change).message
    assert key in message
    assert f"(rule: {rule})" in message


def test_a_config_that_breaks_its_schema_is_named(copy: Path) -> None:
    (copy / "smollm2.config.json").write_text('{"api_params": {"image": "smollm2"}}')
    with pytest.raises(ToolError, match=r"smollm2\.config\.json: api_params\.image: .*\(rule: pattern\)"):
        references.load(copy)


@pytest.mark.parametrize(
    ("file", "text", "type_"),
    [
        ("service.yaml", "a: [1", "reference_malformed"),
        ("request.yaml", "- 1", "schema_broken"),
        ("request.yaml", "", "schema_broken"),
        ("smollm2.config.json", "{", "reference_malformed"),
        ("smollm2.config.json", "\ufeff\x00", "reference_malformed"),
    ],
)
def test_a_file_that_does_not_parse_is_named(copy: Path, file: str, text: str, type_: str) -> None:
    (copy / file).write_text(text)
    with pytest.raises(ToolError) as caught:
        references.load(copy)
    assert caught.value.type == type_
    assert file in caught.value.message


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "request.yaml").unlink()
    with pytest.raises(ToolError, match=r"cannot read .*request\.yaml: No such file"):
        references.load(copy)


def test_an_arch_without_request_rules_is_an_error_that_names_the_key(copy: Path) -> None:
    error = breaks(copy, "request.yaml", lambda d: d["network_arch_constraints"].pop("cosmos-rl"))
    assert error.details["key"] == "network_arch_constraints.cosmos-rl"


def test_a_sampling_field_that_nothing_describes_is_an_error_that_names_it(copy: Path) -> None:
    error = breaks(copy, "request.yaml", lambda d: d["network_arch_constraints"]["smollm2"]["fields"].update(magic={}))
    assert error.details["key"] == "chat_completions_request_body.magic"


def test_a_model_path_protocol_that_nothing_describes_is_an_error_that_names_it(copy: Path) -> None:
    error = breaks(copy, "service.yaml", lambda d: d["model_path_protocols"].pop("hf_model://"))
    assert error.details["key"] == "model_path_protocols.hf_model://"


def test_a_listed_arch_without_a_command_is_unsupported_and_the_others_still_work(copy: Path) -> None:
    edit(copy / "service.yaml", lambda d: d["container_commands"].pop("cosmos-rl"))
    refs = references.load(copy)
    with pytest.raises(BadInput, match="'cosmos-rl' is unsupported") as caught:
        refs.arch("cosmos-rl")
    assert "smollm2" in caught.value.fix
    assert refs.arch("smollm2").network_arch == "smollm2"


def test_an_unknown_arch_lists_those_there_are() -> None:
    with pytest.raises(BadInput) as caught:
        references.load().arch("cosmos")
    assert "cosmos-rl" in caught.value.fix


@pytest.mark.parametrize("config", [None, "{}", '{"api_params": {}}', '{"api_params": {"image": ""}}'])
def test_without_an_image_in_its_config_an_arch_falls_back_to_cosmos_rl(copy: Path, config: str | None) -> None:
    (copy / "smollm2.config.json").unlink()
    if config is not None:
        (copy / "smollm2.config.json").write_text(config)
    resolved = images.resolve("smollm2", references.load(copy), {})
    assert resolved.key == "COSMOS_RL"
    assert resolved.image == "nvcr.io/nvidia/tao/tao-toolkit:7.0.1-cosmos-rl"


def test_a_new_arch_is_a_block_of_yaml_and_a_config_file(copy: Path) -> None:
    def service(document: dict[str, Any]) -> None:
        document["valid_network_arch_config_basenames"].append("new-arch")
        document["docker_image_defaults"]["mapping"]["NEW_ARCH"] = "registry.example/new:1"
        document["container_commands"]["new-arch"] = {
            "description": "new",
            "style": "job_json",
            "argv": ["serve-new"],
            "num_gpus": {"minimum": 2, "default": 4},
            "model_path": {"hf_model://": "repo_id"},
            "secret_env": [],
        }

    edit(copy / "service.yaml", service)
    edit(
        copy / "request.yaml",
        lambda d: d["network_arch_constraints"].update({"new-arch": d["network_arch_constraints"]["smollm2"]}),
    )
    (copy / "new-arch.config.json").write_text('{"api_params": {"image": "NEW_ARCH"}}')
    refs = references.load(copy)
    spec = payload.build(payload.Wanted("new-arch", "hf_model://org/model", "local-docker"), refs, {})
    assert spec.image == "registry.example/new:1"
    assert spec.num_gpus == 4
    assert spec.command.startswith("umask 0 && serve-new --job ")
    assert '"model_path":"org/model"' in spec.command


def test_an_edit_that_breaks_a_file_is_caught_after_the_good_one_was_noted(copy: Path, own_cache: Path) -> None:
    references.load(copy)
    assert len(list(own_cache.rglob("validated/*"))) >= 2
    references.load.cache_clear()
    breaks(copy, "service.yaml", lambda d: d.update(container_port=0))


def test_what_was_noted_is_not_validated_again_and_what_was_edited_is(
    monkeypatch: pytest.MonkeyPatch, copy: Path
) -> None:
    file = copy / "service.yaml"
    document = reference_validation.read_yaml(file)
    reference_validation.validated(file, document)
    checked: list[str] = []
    monkeypatch.setattr(reference_validation, "check", lambda _document, _schema, name: checked.append(name))
    reference_validation.validated(file, document)
    assert checked == []
    reference_validation.validated(file, {**document, "container_port": 8081})
    assert checked == [str(file)]


@pytest.mark.parametrize("spoil", ["file", "unwritable"])
def test_a_cache_that_cannot_be_used_costs_nothing_but_time(own_cache: Path, spoil: str, copy: Path) -> None:
    if spoil == "file":
        own_cache.write_text("not a folder")
    else:
        own_cache.mkdir()
        (own_cache / "tao-run-inference-service").symlink_to("/proc/self/nothing")
    assert references.load(copy).archs
    references.load.cache_clear()
    breaks(copy, "service.yaml", lambda d: d.update(container_port=0))


class TestConsistency:
    """What one reference file says of another."""

    refs: References = references.load()
    service = yaml.safe_load((paths.REFERENCES / "service.yaml").read_text(encoding="utf-8"))
    request = yaml.safe_load((paths.REFERENCES / "request.yaml").read_text(encoding="utf-8"))

    def test_every_image_key_leads_to_an_image(self) -> None:
        assert self.refs.images.fallback_key in self.refs.images.mapping
        for network_arch in self.refs.archs:
            assert images.is_absolute_uri(images.resolve(network_arch, self.refs, {}).image)
        for value in self.refs.images.mapping.values():
            assert images.is_absolute_uri(value) or value in self.refs.images.pins

    def test_every_pin_is_used_and_what_is_built_here_is_pinned(self) -> None:
        assert set(self.refs.images.pins) == set(self.refs.images.mapping.values())
        assert set(self.refs.images.built_here) <= set(self.refs.images.pins)

    def test_every_arch_has_its_config_its_command_its_constraints_and_nothing_more(self) -> None:
        names = set(self.service["valid_network_arch_config_basenames"])
        assert names == set(self.service["container_commands"]) == set(self.request["network_arch_constraints"])
        assert names == {file.name.removesuffix(".config.json") for file in paths.REFERENCES.glob("*.config.json")}

    def test_the_names_of_environment_variables_are_each_of_one_kind(self) -> None:
        rules = self.refs.environment
        kinds = [rules.allowed, set(rules.set_by_us), set(rules.secret), set(rules.forbidden)]
        assert sum(map(len, kinds)) == len(set().union(*kinds))

    def test_every_secret_of_an_arch_is_one_that_it_may_get(self) -> None:
        for name, arch in self.refs.archs.items():
            assert (
                set(arch.launch.required_secret_env) <= set(arch.launch.secret_env) <= set(self.refs.environment.secret)
            )
            for secret in arch.launch.secret_env:
                assert not self.refs.environment.secret[secret] or name in self.refs.environment.secret[secret]

    def test_every_fixed_argument_and_default_can_be_filled_in(self) -> None:
        for arch in self.refs.archs.values():
            known = {*arch.launch.specs, "container_port"}
            for argument in arch.launch.fixed_arguments:
                assert set(re.findall(r"{(.*?)}", argument)) <= known
            assert arch.launch.min_gpus <= arch.launch.default_gpus
            assert "model_path" not in arch.launch.specs

    def test_every_media_type_of_an_arch_has_a_mime_type(self) -> None:
        for arch in self.refs.archs.values():
            if arch.request.media:
                assert set(arch.request.media.image_types) <= set(self.refs.wire.image_types)
                assert set(arch.request.media.video_types) <= set(self.refs.wire.video_types)
                assert arch.request.media.data_uris[-1][0] == "*"

    def test_retry_and_failure_words_are_never_the_same(self) -> None:
        assert not self.refs.wire.readiness.retry & self.refs.wire.readiness.failure

    def test_the_gaps_between_retries_grow_and_the_ports_are_a_range(self) -> None:
        assert self.refs.wire.retry_first_seconds <= self.refs.wire.retry_longest_seconds
        assert self.refs.wire.retry_longest_seconds <= self.refs.wire.retry_give_up_after_seconds
        assert self.refs.first_port == self.refs.container_port < self.refs.last_port

    def test_every_default_is_within_its_own_range(self) -> None:
        for arch in self.refs.archs.values():
            for field in arch.request.fields.values():
                if field.default is not None and field.type in ("integer", "number"):
                    assert field.minimum is None or field.default >= field.minimum
                    assert field.exclusive_minimum is None or field.default > field.exclusive_minimum
                    assert field.maximum is None or field.default <= field.maximum

    def test_every_suggested_model_path_is_one_that_its_arch_takes(self) -> None:
        for name, arch in self.refs.archs.items():
            if arch.launch.suggested_model_path:
                wanted = payload.Wanted(name, arch.launch.suggested_model_path, "local-docker")
                assert payload.build(wanted, self.refs, {}).model_path == arch.launch.suggested_model_path

    def test_the_schemas_are_themselves_valid_and_strict(self) -> None:
        import jsonschema

        for name in ("service", "request", "versions", "network_arch.config", "code-templates", "launch_spec"):
            schema = json.loads((paths.SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
            jsonschema.Draft202012Validator.check_schema(schema)
            assert schema["additionalProperties"] is False
