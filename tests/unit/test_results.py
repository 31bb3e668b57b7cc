"""Answers in files: whole or not at all, never over what was there unless it was named, never lost to a full disk."""

from __future__ import annotations

import base64
import errno
import os
import tempfile
from pathlib import Path

import pytest

from inference_service import references, results
from inference_service.chat import Completion
from inference_service.errors import BadInput, ToolError
from inference_service.results import Destination

WIRE = references.load().wire
VIDEO = os.urandom(10_000_001)


def completion(data: bytes = VIDEO, mime: str = "video/mp4") -> Completion:
    return Completion(f"data:{mime};base64,{base64.b64encode(data).decode()}", "stop", None)


def unnamed(folder: Path) -> Destination:
    return Destination(None, folder / "1234-5678")


def test_a_video_goes_to_a_new_file_and_is_not_printed(tmp_path: Path) -> None:
    content, (saved,) = results.keep(completion(), unnamed(tmp_path), WIRE)
    assert content is None
    assert saved.document() == {"path": str(tmp_path / "1234-5678.mp4"), "bytes": len(VIDEO), "mime": "video/mp4"}
    assert saved.path.read_bytes() == VIDEO
    assert set(tmp_path.iterdir()) == {saved.path, tmp_path / "state"}


def test_a_file_that_is_there_is_never_overwritten_unless_it_was_named(tmp_path: Path) -> None:
    first = results.keep(completion(b"one"), unnamed(tmp_path), WIRE)[1][0].path
    second = results.keep(completion(b"two"), unnamed(tmp_path), WIRE)[1][0].path
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")
    results.keep(completion(b"three"), Destination(first, tmp_path / "x"), WIRE)
    assert first.read_bytes() == b"three"


def test_an_unknown_media_type_gets_a_neutral_ending(tmp_path: Path) -> None:
    assert results.keep(completion(b"x", "audio/x-new"), unnamed(tmp_path), WIRE)[1][0].path.suffix == ".bin"


def test_text_is_printed_and_written_only_where_a_file_is_named(tmp_path: Path) -> None:
    assert results.keep(Completion("hé", None, None), unnamed(tmp_path), WIRE) == ("hé", [])
    named = tmp_path / "answer.txt"
    content, (saved,) = results.keep(Completion("hé", None, None), Destination(named, tmp_path / "x"), WIRE)
    assert (content, saved.bytes, named.read_text(encoding="utf-8")) == ("hé", 3, "hé")
    long = "x" * 100_000
    content, (saved,) = results.keep(Completion(long, None, None), Destination(named, tmp_path / "x"), WIRE)
    assert content == long[: results.LARGEST_PRINTED] + "…"
    assert named.read_text() == long


def test_a_new_file_has_the_rights_that_the_user_gives_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = results.keep(completion(b"x"), unnamed(tmp_path), WIRE)[1][0].path
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("data", ["AAA", "A A=", "****", "AAAA=AAA"])
def test_broken_base64_is_an_error_and_leaves_nothing(tmp_path: Path, data: str) -> None:
    broken = Completion(f"data:video/mp4;base64,{data}", None, None)
    with pytest.raises(ToolError) as caught:
        results.keep(broken, unnamed(tmp_path), WIRE)
    assert caught.value.type == "invalid_answer"
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]


def full_disk(monkeypatch: pytest.MonkeyPatch, *full: Path) -> None:
    """Files in these folders can be made and not synced, as on a disk that fills up."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().parent in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_when_the_disk_is_full_the_answer_is_kept_elsewhere_and_the_error_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "else where"
    here.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    full_disk(monkeypatch, here)
    with pytest.raises(ToolError, match="No space left on device") as caught:
        results.keep(completion(b"x"), unnamed(here), WIRE)
    assert list(here.iterdir()) == []
    (kept,) = elsewhere.iterdir()
    assert kept.read_bytes() == b"x"
    assert str(kept) in caught.value.message
    assert f"mv '{kept}' {here / '1234-5678.mp4'}" in caught.value.fix


def test_when_there_is_no_room_anywhere_the_error_says_that_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    full_disk(monkeypatch, tmp_path)
    with pytest.raises(ToolError, match="it is lost"):
        results.keep(completion(b"x"), unnamed(tmp_path), WIRE)
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]


def test_a_place_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    stem = tmp_path / "x"
    with pytest.raises(BadInput, match="No such file or directory"):
        Destination(tmp_path / "gone" / "a.mp4", stem).check(False)
    with pytest.raises(BadInput, match="not a regular file"):
        Destination(tmp_path, stem).check(False)
    with pytest.raises(BadInput, match="not a regular file"):
        Destination(Path("/dev/null"), stem).check(False)
    with pytest.raises(BadInput):
        Destination(None, tmp_path / "gone" / "x").check(True)
    Destination(None, tmp_path / "gone" / "x").check(False)
    Destination(tmp_path / "new.txt", stem).check(False)
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]
