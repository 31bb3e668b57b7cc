"""Media are checked by name, content, size and arch before anything is sent."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service import media, media_types, references
from inference_service.errors import BadInput
from inference_service.media import MediaItem, Named

EBML = b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82"
CONTENTS = {
    "image/png": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "image/jpeg": b"\xff\xd8\xff\xe0" + bytes(20),
    "image/gif": b"GIF89a" + bytes(20),
    "image/webp": b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(20),
    "image/bmp": b"BM" + bytes(12) + (40).to_bytes(4, "little") + bytes(20),
    "image/tiff": b"II*\x00" + bytes(20),
    "video/mp4": b"\x00\x00\x00\x18ftypisom" + bytes(20),
    "video/mov": b"\x00\x00\x00\x14ftypqt  " + bytes(20),
    "video/avi": b"RIFF\x10\x00\x00\x00AVI LIST" + bytes(20),
    "video/webm": EBML + b"\x84webm" + bytes(20),
    "video/x-matroska": EBML + b"\x88matroska" + bytes(20),
}
WIRE = references.load().wire
ENDINGS = {**WIRE.image_types, **WIRE.video_types}
PNG = "data:image/png;base64," + base64.b64encode(CONTENTS["image/png"]).decode()


def collect(arch: str, *named: tuple[str, object], image: str = "") -> tuple[MediaItem, ...]:
    return media.collect(references.load().arch(arch), [Named(kind, str(text)) for kind, text in named], image)


def refused(arch: str, *named: tuple[str, object], image: str = "") -> BadInput:
    with pytest.raises(BadInput) as caught:
        collect(arch, *named, image=image)
    return caught.value


def file(folder: Path, name: str, mime: str) -> Path:
    path = folder / name
    path.write_bytes(CONTENTS[mime])
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_is_what_its_name_and_its_first_bytes_agree_on(tmp_path: Path, ending: str) -> None:
    mime = ENDINGS[ending]
    path = file(tmp_path, f"x{ending.upper()}", mime)
    kind = mime.split("/")[0]
    assert collect("tao-dataservices", (kind, path)) == (MediaItem(kind, None, path, mime, len(CONTENTS[mime])),)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("content", CONTENTS)
def test_a_name_that_contradicts_the_content_is_refused_with_what_it_really_is(
    tmp_path: Path, ending: str, content: str
) -> None:
    # Containers that may rightly carry both names.
    if ENDINGS[ending] == content or (content, ending) in {("video/mp4", ".mov"), ("video/webm", ".mkv")}:
        return
    error = refused("tao-dataservices", (ENDINGS[ending].split("/")[0], file(tmp_path, f"x{ending}", content)))
    assert error.type == "media_type_mismatch"
    assert f"holds {content}" in error.message


def test_an_unknown_ending_is_decided_by_content(tmp_path: Path) -> None:
    (item,) = collect("tao-dataservices", ("video", file(tmp_path, "clip.m4v", "video/mp4")))
    assert item.mime == "video/mp4"
    (item,) = collect("tao-dataservices", ("image", file(tmp_path, "no-ending", "image/png")))
    assert item.mime == "image/png"


@pytest.mark.parametrize(
    "content", [b"hello", b"<!doctype html>", b"BMW is a car", b"\x1a\x45\xdf\xa3", b"RIFF1234WAVE"]
)
def test_a_file_that_is_no_media_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    assert refused("tao-dataservices", ("image", path)).type == "not_media"


@given(st.binary(max_size=200))
def test_any_bytes_can_be_looked_at(head: bytes) -> None:
    media_types.recognize(head)


def test_a_heif_photo_is_called_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(20))
    assert "holds image/heic" in refused("tao-dataservices", ("image", path)).message


def test_each_arch_takes_its_own_types_only(tmp_path: Path) -> None:
    gif, webm = file(tmp_path, "x.gif", "image/gif"), file(tmp_path, "x.webm", "video/webm")
    for arch in references.load().archs.values():
        if arch.request.media is None:
            continue
        for kind, path, taken in (
            ("image", gif, arch.request.media.image_types),
            ("video", webm, arch.request.media.video_types),
        ):
            if path.suffix in taken:
                assert collect(arch.network_arch, (kind, path))
            else:
                error = refused(arch.network_arch, (kind, path))
                assert error.type == "media_type_refused"
                assert all(ending in error.fix for ending in taken)


def test_an_arch_of_text_alone_takes_no_media(tmp_path: Path) -> None:
    error = refused("smollm2", ("image", file(tmp_path, "x.png", "image/png")))
    assert error.type == "no_media_taken"
    assert "cosmos-rl" in error.fix
    assert collect("smollm2") == ()


def test_an_arch_that_needs_media_is_not_asked_without() -> None:
    assert refused("cosmos-rl").type == "media_required"
    assert collect("cosmos-predict2.5") == ()


def test_an_arch_that_takes_one_is_not_given_two(tmp_path: Path) -> None:
    png = file(tmp_path, "x.png", "image/png")
    assert refused("cosmos-predict2.5", ("image", png), ("image", png)).type == "too_many_media"


def test_an_image_is_no_video(tmp_path: Path) -> None:
    error = refused("cosmos-rl", ("video", file(tmp_path, "x.png", "image/png")))
    assert (error.type, error.fix) == ("wrong_media_kind", "use --image")
    assert refused("cosmos-rl", ("image", "https://example.com/a.mp4?x=1")).fix == "use --video"


@pytest.mark.parametrize("protocol", WIRE.refused_media_protocols)
def test_cloud_and_file_uris_are_refused_with_the_reason(protocol: str) -> None:
    error = refused("cosmos-rl", ("image", f"{protocol.upper()}bucket/x.png"))
    assert error.type == "media_protocol_refused"
    assert error.fix == WIRE.refused_media_protocols[protocol]


@pytest.mark.parametrize(
    "url", ["http://example.com/x.png", "https://h:8443/clip?token=a%20b", "HTTPS://example.com/x.JPG"]
)
def test_a_web_address_is_passed_on_as_it_is(url: str) -> None:
    (item,) = collect("cosmos-rl", ("image", url))
    assert (item.url, item.path) == (url, None)


@pytest.mark.parametrize("url", ["http://", "http:///x.png", "http://h/a b.png", "http://h:port/x.png", "http://h/\n"])
def test_what_is_no_web_address_is_refused(url: str) -> None:
    assert refused("cosmos-rl", ("image", url)).type == "bad_url"


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    error = refused("cosmos-rl", ("image", "https://me:hunter22@example.com/x.png"))
    assert error.type == "secret_in_url"
    assert "hunter22" not in str(error.document())


def test_ftp_is_refused() -> None:
    assert refused("cosmos-rl", ("image", "ftp://example.com/x.png")).type == "media_protocol_refused"


def test_a_data_uri_is_checked_and_passed_on() -> None:
    (item,) = collect("cosmos-rl", ("image", PNG))
    assert (item.url, item.mime, item.bytes) == (PNG, "image/png", len(CONTENTS["image/png"]))


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("data:image/png,abc", "bad_data_uri"),
        ("data:;base64,AAAA", "bad_data_uri"),
        ("data:image/png;base64,AAA", "bad_data_uri"),
        ("data:image/png;base64,AA AA", "bad_data_uri"),
        ("data:image/png;base64,é", "bad_data_uri"),
        ("data:image/png;base64,", "empty_file"),
        ("data:image/png;base64,AAAA", "not_media"),
        (PNG.replace("png", "jpeg"), "media_type_mismatch"),
        (PNG.replace("png", "svg+xml"), "media_type_refused"),
        (PNG.replace("image/png", "text/plain"), "media_type_refused"),
        (PNG.replace("image/png", "video/mp4"), "wrong_media_kind"),
    ],
)
def test_a_bad_data_uri_is_refused(uri: str, kind: str) -> None:
    assert refused("cosmos-rl", ("image", uri)).type == kind


@pytest.mark.parametrize(
    ("image", "accepted"),
    [
        ("nvcr.io/nvidia/tao/tao-toolkit:6.26.3-cosmos-rl", False),
        ("registry:5000/tao-toolkit:6.0@sha256:abc", False),
        ("nvcr.io/nvidia/tao/tao-toolkit:7.0.1-cosmos-rl", True),
        ("registry:6000/tao-toolkit", True),
        ("", True),
    ],
)
def test_the_image_tag_decides_whether_files_can_be_inlined(tmp_path: Path, image: str, accepted: bool) -> None:
    png = file(tmp_path, "x.png", "image/png")
    for named in (("image", png), ("image", PNG)):
        if accepted:
            assert collect("cosmos-rl", named, image=image)
        else:
            error = refused("cosmos-rl", named, image=image)
            assert error.type == "data_uri_refused"
            assert "https://" in error.fix
    assert collect("cosmos-rl", ("image", "https://example.com/x.png"), image=image)


def test_what_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    with path.open("wb") as stream:
        stream.truncate((512 << 20) + 1)
    error = refused("cosmos-rl", ("video", path))
    assert error.type == "media_too_large"
    assert "536870912 (512 MiB)" in error.message


def test_exactly_the_largest_size_is_taken(tmp_path: Path) -> None:
    path = file(tmp_path, "x.mp4", "video/mp4")
    os.truncate(path, 512 << 20)
    assert collect("cosmos-rl", ("video", path))[0].bytes == 512 << 20


def test_an_empty_file_a_directory_a_pipe_and_nothing_at_all_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert refused("cosmos-rl", ("image", tmp_path / "empty.png")).type == "empty_file"
    assert "a directory" in refused("cosmos-rl", ("image", tmp_path / "folder.png")).message
    assert "not a regular file" in refused("cosmos-rl", ("image", tmp_path / "pipe.png")).message
    assert "No such file" in refused("cosmos-rl", ("image", tmp_path / "gone.png")).message
    assert refused("cosmos-rl", ("image", "a\0b.png")).type == "unreadable_file"


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(tmp_path, "x.png", "image/png")

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)  # root may read anything, so the refusal is played
    error = refused("cosmos-rl", ("image", path))
    assert (error.type, "Permission denied" in error.message) == ("unreadable_file", True)
