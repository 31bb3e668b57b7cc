"""The journal: what is written is read back, whatever the process and the disk did in between."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import zlib
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SCRIPTS

from inference_service.request_log.journal import Journal, JournalFull, folder_of, read
from inference_service.request_log.rows import RequestRow
from inference_service.request_log.stored_rows import COLUMNS, row_of, storable, values_of

ROW = RequestRow(request_id="r", time=1769850000.25, route="/v1/messages", caller="ana", network_arch="claude")

texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)
counts = st.none() | st.integers(0, 2**63 - 1)
rows = st.builds(
    RequestRow,
    request_id=st.uuids().map(str),
    time=st.integers(0, 4_000_000_000).map(float) | st.just(1769850000.999999),
    route=texts,
    caller=texts,
    tags=st.dictionaries(texts, texts, max_size=3),
    model=st.none() | texts,
    stream=st.booleans(),
    total_seconds=st.none() | st.floats(0, 1e6),
    input_tokens=counts,
    response_bytes=counts,
    cost_usd=st.none() | st.decimals(0, 10**9, places=15, allow_nan=False),
)


def contents(journal: Journal) -> list[RequestRow]:
    (file,) = journal.folder.glob("*.jsonl")
    return [row_of(values) for values in read(file).rows]


def record(json: bytes) -> bytes:
    return f"{zlib.crc32(json):08x} ".encode() + json + b"\n"


@given(st.lists(rows, max_size=5))
def test_rows_are_read_back_as_they_were(written: list[RequestRow]) -> None:
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        for row in written:
            journal.append(values_of(row))
        found = contents(journal) if written else []
        assert [replace(row, time=0.0) for row in found] == [replace(row, time=0.0) for row in written]
        assert [row.time for row in found] == pytest.approx([row.time for row in written], abs=2e-6)


@settings(max_examples=60)
@given(st.data())
def test_a_file_cut_at_any_byte_is_read_up_to_there(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        segment = journal.append(values_of(ROW))
        ends = [segment.size]
        for number in range(3):
            journal.append(values_of(replace(ROW, request_id=str(number))))
            ends.append(segment.size)
        cut = data.draw(st.integers(0, segment.size))
        os.truncate(segment.path, cut)
        found = read(segment.path)
        assert len(found.rows) == sum(end <= cut for end in ends)
        assert found.damaged == []


@settings(max_examples=60)
@given(st.data())
def test_a_changed_byte_costs_the_records_it_is_in_and_no_other(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        ids = [str(number) for number in range(6)]
        for id in ids:
            segment = journal.append(values_of(replace(ROW, request_id=id)))
        content = bytearray(segment.path.read_bytes()[: segment.size])
        header = content.index(b"\n") + 1
        place = data.draw(st.integers(header, len(content) - 2))
        content[place] ^= data.draw(st.integers(1, 255))
        segment.path.write_bytes(content)
        found = read(segment.path)
        kept = [row_of(values).request_id for values in found.rows]
        # A line end that is gone glues two records together, one that is new cuts one into two.
        assert len(kept) >= 4
        assert kept == [id for id in ids if id in kept]
        assert 1 <= len(found.damaged) <= 2


def test_a_file_of_another_version_is_read_by_its_columns(tmp_path: Path) -> None:
    columns = ["request_id", "time", "route", "colour"]
    header = record(orjson.dumps({"format": 1, "columns": columns}))
    line = record(orjson.dumps(["r", "2026-01-31T09:00:00.250000Z", "/", "blue"]))
    (tmp_path / "x.jsonl").write_bytes(header + line)
    (values,) = read(tmp_path / "x.jsonl").rows
    assert row_of(values) == RequestRow(request_id="r", time=1769850000.25, route="/")


def test_a_file_lives_until_all_of_its_rows_are_moved(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    journal = Journal(folder, segment_bytes=1)
    first = journal.append(values_of(ROW))
    second = journal.append(values_of(ROW))
    assert first is not second
    assert first.sealed
    journal.release()
    assert first.path.exists()
    first.moved = second.moved = 1
    journal.release()
    assert not first.path.exists()
    assert second.path.exists(), "the current file gets more rows"
    journal.close()
    assert list(folder.iterdir()) == []


def test_rows_that_only_the_file_has_keep_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    segment = journal.append(values_of(ROW))
    segment.moved = 1
    segment.in_file_only = True
    assert journal.to_be_read() == [segment]
    journal.release()
    assert segment.path.exists()
    journal.remove(segment)
    assert journal.bytes == 0
    assert not segment.path.exists()


HOLDER = """
import sys
from pathlib import Path
from inference_service.request_log.journal import Journal
from inference_service.request_log.rows import RequestRow
from inference_service.request_log.stored_rows import values_of
journal = Journal(Path(sys.argv[1]))
journal.append(values_of(RequestRow("theirs", 0.0, "/")))
print("written", flush=True)
sys.stdin.read()
"""


def test_only_what_a_process_left_that_is_gone_is_adopted(tmp_path: Path) -> None:
    ours = Journal(tmp_path)
    ours.append(values_of(ROW))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"written\n"
    with ours.leftovers() as found:
        assert list(found) == []
    holder.kill()
    holder.communicate()
    with ours.leftovers() as found:
        for path in found:
            assert [row_of(values).request_id for values in read(path).rows] == ["theirs"]
            with Journal(tmp_path).leftovers() as others:
                assert path not in list(others), "it is locked while we have it"
            break
        else:
            pytest.fail("nothing was adopted")


def test_links_and_files_of_others_are_not_adopted(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    (tmp_path / "target").write_bytes(b"")
    (folder / "link.jsonl").symlink_to(tmp_path / "target")
    if os.geteuid() == 0:
        (folder / "theirs.jsonl").touch()
        os.chown(folder / "theirs.jsonl", 65534, 65534)
    with Journal(folder).leftovers() as found:
        assert list(found) == []


def test_a_file_that_never_got_its_name_is_removed_when_its_maker_must_be_dead(tmp_path: Path) -> None:
    old, new = tmp_path / ".1-old.jsonl", tmp_path / ".2-new.jsonl"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    with Journal(tmp_path).leftovers() as found:
        assert list(found) == []
    assert (old.exists(), new.exists()) == (False, True)


def test_it_is_private_to_its_user(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        segment = Journal(tmp_path / "new").append(values_of(ROW))
    finally:
        os.umask(previous)
    assert stat.S_IMODE(segment.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(segment.path.parent.stat().st_mode) == 0o700


def test_it_does_not_grow_beyond_its_size(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=2_000, most_bytes=10_000)
    with pytest.raises(JournalFull):
        for _ in range(100):
            journal.append(values_of(ROW))
    assert 10_000 <= sum(file.stat().st_size for file in tmp_path.glob("*.jsonl")) < 13_000


def test_a_file_takes_its_room_when_it_is_made_and_gives_back_what_it_did_not_use(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=100_000)
    segment = journal.append(values_of(ROW))
    assert segment.path.stat().st_blocks * 512 >= 100_000, "a full disk would be noticed too late"
    journal.seal()
    assert segment.path.stat().st_size == segment.size < 100_000
    assert len(read(segment.path).rows) == 1


def test_a_disk_that_has_no_room_for_a_whole_file_gets_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = os.posix_fallocate

    def nearly_full(descriptor: int, offset: int, size: int) -> None:
        if size > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", nearly_full)
    segment = Journal(tmp_path).append(values_of(ROW))
    assert segment.path.stat().st_size < 100_000
    assert len(read(segment.path).rows) == 1


def test_a_row_that_is_longer_than_a_file_gets_a_file_that_fits(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=1_000)
    segment = journal.append(values_of(replace(ROW, model="m" * 5_000)))
    (values,) = read(segment.path).rows
    assert row_of(values).model == "m" * 5_000


def test_each_database_has_a_journal_of_its_own() -> None:
    assert folder_of("sqlite:///a.db") != folder_of("sqlite:///b.db")


def test_a_secret_that_a_caller_put_into_a_name_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    row = replace(ROW, model="sk-ant-api03-planted0123456789", tags={"mine": "hf_planted_secret", "é": "tao-x"})
    written = row_of(values_of(row))
    assert (written.model, written.tags) == ("[redacted]", {"mine": "[redacted]", "é": "tao-x"})


def test_tags_of_any_mapping_and_halves_of_characters_are_written() -> None:
    written = row_of(values_of(replace(ROW, tags=MappingProxyType({"k": "\ud800"}))))
    assert written.tags == {"k": "?"}


def test_what_no_database_takes_is_replaced() -> None:
    row = replace(ROW, caller="a\ud800\0b", input_tokens=2**70, tags={"k": "\0"}, cost_usd=Decimal("1.50"))
    cleaned = row_of(storable(values_of(row)))
    assert cleaned.caller == "a?\ufffdb"
    assert cleaned.input_tokens is None
    assert cleaned.tags == {"k": "\ufffd"}
    assert cleaned.cost_usd == Decimal("1.50")
    assert set(asdict(cleaned)) == set(COLUMNS)
