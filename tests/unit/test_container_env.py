"""Which environment names a service gets, and that a secret's value is repeated nowhere."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from inference_service import container_env, references
from inference_service.errors import BadInput

REFS = references.load()
RULES = REFS.environment
VALUE = "planted-7f3a9c"


def parse(
    *assignments: str, arch: str = "cosmos-rl", environ: Mapping[str, str] | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    return container_env.parse(assignments, REFS.arch(arch), RULES, environ or {})


def refusal(*assignments: str, arch: str = "cosmos-rl") -> BadInput:
    with pytest.raises(BadInput) as caught:
        parse(*assignments, arch=arch)
    return caught.value


def test_a_plain_name_has_the_value_given_or_that_of_the_environment() -> None:
    values, secret_names = parse("WANDB_PROJECT=a=b", "TAO_LOG_LEVEL", environ={"TAO_LOG_LEVEL": "debug"})
    assert values == {"WANDB_PROJECT": "a=b", "TAO_LOG_LEVEL": "debug"}
    assert secret_names == ()


@pytest.mark.parametrize("name", sorted(name for name, only_for in RULES.secret.items() if not only_for))
def test_a_secret_is_named_and_never_read(name: str) -> None:
    assert parse(name, environ={name: VALUE}) == ({}, (name,))


@pytest.mark.parametrize("name", sorted(RULES.secret))
def test_a_secret_with_its_value_is_refused_and_the_value_is_not_repeated(name: str) -> None:
    error = refusal(f"{name}={VALUE}")
    assert error.type == "secret_on_command_line"
    assert VALUE not in str(error.document())
    assert f"--env {name}" in error.fix


def test_a_secret_for_another_arch_is_refused() -> None:
    assert parse("ANTHROPIC_API_KEY", arch="claude") == ({}, ("ANTHROPIC_API_KEY",))
    assert "only for claude" in refusal("ANTHROPIC_API_KEY").message


@pytest.mark.parametrize("name", ["TAO_LOGGING_SERVER_URL", "TAO_ADMIN_KEY"])
def test_a_forbidden_name_says_why(name: str) -> None:
    error = refusal(f"{name}={VALUE}")
    assert RULES.forbidden[name] in error.message
    assert VALUE not in str(error.document())


@pytest.mark.parametrize("name", RULES.set_by_us)
def test_what_follows_from_the_platform_and_the_job_cannot_be_set(name: str) -> None:
    assert refusal(f"{name}=x").type == "env_set_by_us"


@pytest.mark.parametrize("name", sorted(RULES.never_passed - set(RULES.forbidden)))
def test_a_secret_of_the_users_own_tools_is_never_passed(name: str) -> None:
    assert VALUE not in str(refusal(f"{name}={VALUE}").document())


@pytest.mark.parametrize("text", ["PATH=/x", "LD_PRELOAD=/x.so", "wandb_project=x", "=x", ""])
def test_an_unknown_name_lists_those_that_may_be_passed(text: str) -> None:
    error = refusal(text)
    assert error.type == "unknown_env"
    assert "WANDB_PROJECT" in error.fix
    assert "HF_TOKEN" in error.fix


def test_a_value_in_the_names_place_is_not_repeated() -> None:
    assert VALUE not in str(refusal(VALUE).document())
    assert VALUE not in str(refusal(f"hf_token={VALUE}").document())


def test_a_plain_name_that_is_not_set_and_a_name_given_twice_are_refused() -> None:
    assert "not set" in refusal("TAO_LOG_LEVEL").message
    assert "twice" in refusal("JOB_ID=1", "JOB_ID=2").message
    assert "twice" in refusal("HF_TOKEN", "HF_TOKEN").message


def test_a_value_that_no_process_can_be_given_is_refused() -> None:
    assert refusal("JOB_ID=a\0b").type == "bad_text"
