"""The file that keeps an endpoint's token: for this user alone, and never with a token that is not valid."""

from __future__ import annotations

import stat
import uuid
from pathlib import Path
from types import SimpleNamespace

import lepton_token as tokens
import pytest

from inference_service.errors import ToolError

JOB = str(uuid.uuid4())


def test_the_token_is_kept_for_this_user_alone_and_forgotten() -> None:
    tokens.save(JOB, "first")
    tokens.save(JOB, "second")
    file = tokens.file_of(JOB)
    assert file.read_text() == "second\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    tokens.forget(JOB)
    tokens.forget(JOB)
    assert list(file.parent.iterdir()) == []


def test_a_token_that_does_not_become_valid_leaves_the_one_before() -> None:
    tokens.save(JOB, "valid")

    def refuse() -> None:
        raise ToolError("lepton_unreachable", "no network")

    with pytest.raises(ToolError, match="no network"):
        tokens.replace(JOB, "never-valid", refuse)
    assert tokens.file_of(JOB).read_text() == "valid\n"
    assert len(list(tokens.file_of(JOB).parent.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_an_error_before_the_token_is_made_valid() -> None:
    folder = tokens.file_of(JOB).parent
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the folder should be")
    made_valid: list[Path] = []
    with pytest.raises(ToolError) as failed:
        tokens.replace(JOB, "token-value", lambda: made_valid.append(folder))
    assert failed.value.type == "token_not_kept"
    assert "token-value" not in str(failed.value.document())
    assert made_valid == []


def test_a_redacted_token_is_none() -> None:
    def answer(*values: str | None) -> SimpleNamespace:
        return SimpleNamespace(spec=SimpleNamespace(api_tokens=[SimpleNamespace(value=value) for value in values]))

    assert tokens.of(answer("***", None, "real")) == "real"
    assert tokens.of(answer("***")) is None
    assert tokens.of(SimpleNamespace(spec=None)) is None
