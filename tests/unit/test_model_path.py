"""What may be written as --model-path, and what each arch's service is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inference_service import model_path, references
from inference_service.errors import BadInput
from inference_service.model_path import ModelPath

REFS = references.load()


def read(written: str, arch: str = "cosmos-rl") -> ModelPath:
    return model_path.read(written, REFS.arch(arch), REFS)


def refusal(written: str, arch: str = "cosmos-rl") -> BadInput:
    with pytest.raises(BadInput) as caught:
        read(written, arch)
    return caught.value


@pytest.mark.parametrize(
    ("arch", "written", "text"),
    [
        ("cosmos-rl", "hf_model://nvidia/Cosmos-Reason1-7B", "hf_model://nvidia/Cosmos-Reason1-7B"),
        ("tao-dataservices", "hf_model://nvidia/Cosmos-Reason1-7B", "nvidia/Cosmos-Reason1-7B"),
        ("tao-dataservices", "/models/x", "/models/x"),
        ("cosmos-predict2.5", "/models/x.pt", "/models/x.pt"),
        ("claude", "claude://claude-haiku-4-5[1m]", "claude://claude-haiku-4-5[1m]"),
    ],
)
def test_each_arch_gives_its_service_the_form_that_it_loads(arch: str, written: str, text: str) -> None:
    assert read(written, arch).text == text


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "cs", "aws", "hf", "S3"])
def test_every_refused_scheme_says_why_and_what_to_use(scheme: str) -> None:
    error = refusal(f"{scheme}://bucket/model")
    assert error.type == "refused_model_path"
    assert REFS.refused_model_path_protocols[f"{scheme.lower()}://"] in error.message
    assert "hf_model://<org>/<model>" in error.fix


@pytest.mark.parametrize("written", ["http://x/y", "file:///models/x", "HF_MODEL://a/b", "nfs://h/p"])
def test_an_unknown_scheme_lists_the_forms(written: str) -> None:
    error = refusal(written)
    assert "nothing is known of" in error.message
    assert "hf_model://<org>/<model>" in error.fix


@pytest.mark.parametrize(
    "written",
    [
        "hf_model://",
        "hf_model://org",
        "hf_model://org/",
        "hf_model:///model",
        "hf_model://org/model/file",
        "hf_model://org/model name",
        "hf_model://org/mo--del",
        "hf_model://org/..",
        "hf_model://org/-model",
        "hf_model://org/model.git",
        "hf_model://org/model\n",
        "hf_model://org/$(id)",
        "hf_model://org/модель",
        "hf_model://org/" + "a" * 97,
    ],
)
def test_a_hub_repository_is_exactly_org_and_model(written: str) -> None:
    assert "not of the form hf_model://<org>/<model>" in refusal(written).message


def test_a_path_that_is_not_absolute_says_what_was_probably_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--model-path hf_model://org/model" in refusal("org/model").fix
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").mkdir()
    assert f"--model-path {tmp_path}/checkpoint" in refusal("checkpoint").fix
    assert "empty" in refusal("").message
    assert "relative" in refusal("../x").message


@pytest.mark.parametrize("written", ["hf_model://<org>/<model>", "/models/<model>", "<model>", "/<path>"])
def test_a_placeholder_is_never_taken_for_a_model(written: str) -> None:
    assert refusal(written).type == "placeholder"


@pytest.mark.parametrize(
    ("arch", "written"),
    [("claude", "/models/x"), ("claude", "hf_model://a/b"), ("cosmos-rl", "claude://claude-haiku-4-5")],
)
def test_a_form_that_this_arch_does_not_take_is_refused(arch: str, written: str) -> None:
    error = refusal(written, arch)
    assert f"{arch} does not take this form" in error.message


@pytest.mark.parametrize("written", ["/", "//", "/a\0b", "/a\ud800"])
def test_what_no_process_can_be_given_is_refused(written: str) -> None:
    refusal(written)


@given(st.text())
@example("/a/b c'\"$(id)\n`x`")
@example("/models/é\u2028<x")
@example("~0")
@example("x" * 5000)
def test_any_text_is_taken_unchanged_or_refused_with_a_reason_and_a_way_out(written: str) -> None:
    try:
        assert read(written).text == written
    except BadInput as error:
        assert error.message
        assert error.fix
