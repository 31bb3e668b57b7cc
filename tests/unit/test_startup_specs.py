"""--spec name=value: typed by the data, refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service import references, startup_specs
from inference_service.errors import BadInput

REFS = references.load()
HF = REFS.arch("tao-dataservices")
FLAGS = REFS.arch("cosmos-predict2.5")


@pytest.mark.parametrize(
    ("arch", "text", "value"),
    [
        (HF, "torch_dtype=bfloat16", "bfloat16"),
        (HF, "torch_dtype=a=b", "a=b"),
        (HF, "trust_remote_code=True", True),
        (HF, "trust_remote_code=0", False),
        (HF, 'max_memory={"0": "20GiB"}', {"0": "20GiB"}),
        (FLAGS, "context-parallel-size=2", 2),
        (FLAGS, "idle-timeout-minutes=1.5", 1.5),
        (FLAGS, "idle-timeout-minutes=0", 0),
        (FLAGS, "model=base-2b", "base-2b"),
    ],
)
def test_a_value_has_its_specs_type(arch: references.Arch, text: str, value: Any) -> None:
    parsed = startup_specs.parse([text], arch)
    assert parsed == {text.partition("=")[0]: value}
    assert type(next(iter(parsed.values()))) is type(value)


@pytest.mark.parametrize(
    ("arch", "text"),
    [
        (HF, "trust_remote_code=maybe"),
        (HF, "max_memory=20GiB"),
        (HF, "max_memory=[1]"),
        (HF, 'max_memory={"0": null}'),
        (HF, 'max_memory={"0": NaN}'),
        (HF, 'max_memory={"0": "\\ud800"}'),
        (HF, 'max_memory={"0": 1e999}'),
        (HF, "max_memory=" + '{"a":' * 30 + "1" + "}" * 30),
        (HF, "max_memory=" + '{"a":' * 100_000),
        (HF, "max_memory={" + '"a":' + "9" * 5000 + "}"),
        (FLAGS, "context-parallel-size=0"),
        (FLAGS, "context-parallel-size=1.0"),
        (FLAGS, "context-parallel-size=１"),
        (FLAGS, "idle-timeout-minutes=nan"),
        (FLAGS, "idle-timeout-minutes=inf"),
        (FLAGS, "idle-timeout-minutes=1e999"),
        (FLAGS, "idle-timeout-minutes=-1"),
        (FLAGS, "pid-file=--model"),
        (FLAGS, "pid-file="),
        (FLAGS, "model=-x"),
    ],
)
def test_a_value_that_its_spec_cannot_have_is_refused_with_what_it_can(arch: references.Arch, text: str) -> None:
    with pytest.raises(BadInput) as caught:
        startup_specs.parse([text], arch)
    assert caught.value.type == "bad_spec_value"
    assert caught.value.fix.startswith("give ")


@pytest.mark.parametrize("name", ["custom_pipeline_loader", "custom_inference_fn"])
def test_code_that_the_container_would_execute_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(BadInput, match="code that the container would execute"):
        startup_specs.parse([f"{name}=evil.py"], HF)


@pytest.mark.parametrize("text", ["temperature=1", "=1", "model_path=/x"])
def test_an_unknown_spec_lists_those_there_are(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        startup_specs.parse([text], HF)
    assert "torch_dtype" in caught.value.fix


def test_an_arch_without_specs_says_so() -> None:
    with pytest.raises(BadInput) as caught:
        startup_specs.parse(["x=1"], REFS.arch("cosmos-rl"))
    assert "none" in caught.value.fix


def test_a_spec_without_a_value_and_one_given_twice_are_refused() -> None:
    with pytest.raises(BadInput, match="not name=value"):
        startup_specs.parse(["torch_dtype"], HF)
    with pytest.raises(BadInput, match="given twice"):
        startup_specs.parse(["torch_dtype=a", "torch_dtype=b"], HF)


@given(st.sampled_from(sorted(HF.launch.specs)), st.text())
def test_any_value_is_parsed_or_refused_and_what_is_parsed_passes_the_check_again(name: str, text: str) -> None:
    try:
        values = startup_specs.parse([f"{name}={text}"], HF)
    except BadInput:
        return
    assert startup_specs.check(values, HF) == values
