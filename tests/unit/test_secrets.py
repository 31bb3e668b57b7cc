"""Secrets are read by name and survive in nothing that is shown."""

from __future__ import annotations

import base64
import json
import shlex
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service import references, secrets
from inference_service.errors import BadInput

RULES = references.load().environment
NAMES = sorted({*RULES.secret, *RULES.never_passed})

# Secrets that share no six characters with the replacement itself.
values = st.text(st.characters(codec="utf-8", exclude_characters="\0[]redacted"), min_size=6, max_size=40)
environments = st.dictionaries(st.sampled_from(NAMES), values, min_size=1, max_size=3)


def test_the_values_are_read_by_name() -> None:
    assert secrets.read(["HF_TOKEN"], {"HF_TOKEN": "value", "OTHER": "x"}) == {"HF_TOKEN": "value"}


@pytest.mark.parametrize("environ", [{}, {"HF_TOKEN": ""}])
def test_a_secret_that_is_not_set_says_which_variable_to_export(environ: dict[str, str]) -> None:
    with pytest.raises(BadInput) as caught:
        secrets.read(["HF_TOKEN"], environ)
    assert caught.value.fix.startswith("export HF_TOKEN=")


@given(environments, st.text(), st.text())
def test_no_planted_secret_survives(environ: dict[str, str], before: str, after: str) -> None:
    for value in environ.values():
        assert value not in secrets.redact(before + value + after, environ)


@given(environments)
def test_no_planted_secret_survives_in_another_spelling(environ: dict[str, str]) -> None:
    for value in environ.values():
        raw = value.encode()
        for spelling in (
            json.dumps(value)[1:-1],
            json.dumps(value, ensure_ascii=False)[1:-1],
            quote(value, safe=""),
            quote(value),
            quote_plus(value),
            shlex.quote(value).removeprefix("'").removesuffix("'"),
        ):
            assert secrets.redact(f"a {spelling} b", environ) == f"a {secrets.REDACTED} b" or len(spelling) < 6
        if len(raw) >= 12:
            for user in (b"", b"u:", b"us:"):
                encoded = base64.b64encode(user + raw).decode()
                assert secrets.redact(encoded, environ) != encoded


@given(environments, st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=4))
def test_no_planted_secret_survives_in_a_document(environ: dict[str, str], other: object) -> None:
    for value in environ.values():
        document = {"other": other, value: [{"a": f"<{value}>"}, (value, 1, None)]}
        cleaned = secrets.redact_document(document, environ)
        assert value not in json.dumps(cleaned, ensure_ascii=False)
        assert cleaned["other"] == other


def test_of_two_secrets_one_the_beginning_of_the_other_nothing_is_left() -> None:
    environ = {"HF_TOKEN": "abcdef", "NGC_API_KEY": "abcdefghijkl"}
    assert secrets.redact("x abcdefghijkl abcdef", environ) == "x [redacted] [redacted]"


def test_each_line_of_a_secret_of_several_lines_is_removed_and_a_line_end_does_not_matter() -> None:
    environ = {"HF_TOKEN": "first-line\nsecond-line\n"}
    assert secrets.redact("a first-line b second-line", environ) == "a [redacted] b [redacted]"


def test_a_short_value_does_not_blank_ordinary_words() -> None:
    assert secrets.redact("true story", {"HF_TOKEN": "true"}) == "true story"


@pytest.mark.parametrize(
    "text", ["HF_TOKEN=hf_unknown", "export HF_TOKEN='a b'", 'HF_TOKEN="a b"', "-e WANDB_API_KEY=0123"]
)
def test_a_value_that_this_process_does_not_know_is_removed_where_its_name_says_what_it_is(text: str) -> None:
    assert secrets.redact(text, {}) == text.partition("=")[0] + "=[redacted]"


@pytest.mark.parametrize(
    "text",
    [
        "export HF_TOKEN=…",
        "HF_TOKEN=$HF_TOKEN",
        'HF_TOKEN="$HF_TOKEN"',
        "HF_TOKEN=<token>",
        "MY_HF_TOKEN=x",
        "HF_TOKEN: x",
    ],
)
def test_a_command_written_for_people_stays_as_it_is(text: str) -> None:
    assert secrets.redact(text, {}) == text


@given(environments)
def test_a_document_with_a_secrets_value_is_refused_by_the_secrets_name(environ: dict[str, str]) -> None:
    for value in environ.values():
        with pytest.raises(BadInput) as caught:
            secrets.refuse_values({"a": [f"x{value}"]}, environ)
        assert value not in caught.value.message
    secrets.refuse_values({"a": ["x"], "b": 1}, environ)
