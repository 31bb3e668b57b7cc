"""Images and videos of a request: a local path, an http(s) URL or a data: URI becomes one checked MediaItem.

Whatever the service would refuse, ignore without a word or choke on is refused here, before a byte is sent. A local
file is only looked at (its size, its first bytes); `body` streams it.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from inference_service import media_types, references
from inference_service.errors import BadInput
from inference_service.references import Arch, Media, Wire

_DATA_URI = re.compile(r"data:([a-z0-9.+-]+/[a-z0-9.+-]+);base64,(.*)", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_MIB = 1 << 20


@dataclass(frozen=True)
class MediaItem:
    """One image or video (`kind`): either `url`, which is sent as it is, or `path`, a local file to be inlined.

    `mime` is None for an http(s) URL whose ending says nothing. `bytes` is the size of the file or of the decoded data:
    URI, None for an http(s) URL.
    """

    kind: str
    url: str | None
    path: Path | None
    mime: str | None
    bytes: int | None


@dataclass(frozen=True)
class Named:
    """One medium as the user named it: `kind` is image or video, `text` a path, an http(s) URL or a data: URI."""

    kind: str
    text: str


def collect(arch: Arch, named: Sequence[Named], image: str) -> tuple[MediaItem, ...]:
    """The checked media of one request to a service of this arch that runs the container image `image`.

    Raises:
        BadInput: the arch takes no such media, needs some, takes fewer, or one of them cannot be sent.
    """
    rules = arch.request.media
    if rules is None:
        if named:
            takers = [other.network_arch for other in references.load().archs.values() if other.request.media]
            raise BadInput(
                "no_media_taken",
                f"{arch.network_arch} takes text alone, no {named[0].kind}",
                f"leave out --{named[0].kind}, or send to a service of: {', '.join(takers)}",
            )
        return ()
    if rules.required and not named:
        raise BadInput(
            "media_required",
            f"{arch.network_arch} needs an image or a video in every request",
            "add --image FILE or --video FILE",
        )
    if rules.maximum is not None and len(named) > rules.maximum:
        raise BadInput(
            "too_many_media",
            f"{arch.network_arch} takes {rules.maximum} image or video, not {len(named)}",
            "send one request for each",
        )
    wire = references.load().wire
    return tuple(_Checker(arch.network_arch, rules, wire, image).check(one) for one in named)


@dataclass(frozen=True)
class _Checker:
    network_arch: str
    rules: Media
    wire: Wire
    image: str

    def check(self, named: Named) -> MediaItem:
        if named.text[:5].lower() == "data:":
            return self._data_uri(named)
        scheme = _SCHEME.match(named.text)
        if scheme is None:
            return self._file(named)
        for protocol, reason in self.wire.refused_media_protocols.items():
            if named.text.lower().startswith(protocol):
                raise BadInput(
                    "media_protocol_refused", f"--{named.kind} {named.text}: {protocol} is not taken", reason
                )
        if scheme[1].lower() not in ("http", "https"):
            raise BadInput(
                "media_protocol_refused",
                f"--{named.kind} {named.text}: {scheme[0]} is not taken",
                "give a local path or an http(s) URL",
            )
        return self._web(named)

    def _web(self, named: Named) -> MediaItem:
        try:
            parts = urlsplit(named.text)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or not named.text.isprintable() or " " in named.text:
            raise BadInput(
                "bad_url",
                f"--{named.kind} {named.text!r} is not a URL",
                "give http(s)://host/path, special characters as %XX",
            )
        if parts.username is not None or parts.password is not None:
            # The body reaches the service's log; a password in it would too. The message must not repeat it either.
            raise BadInput(
                "secret_in_url",
                f"--{named.kind}: the URL at {host} carries a user name or password",
                "download the file and give its path",
            )
        mime = self._mime_by_name(parts.path)
        if mime is not None:
            self._check_allowed(named, mime, named.text)
        return MediaItem(named.kind, named.text, None, mime, None)

    def _data_uri(self, named: Named) -> MediaItem:
        self._check_inlining(named)
        shown = f"{named.text[:40]}…"
        match = _DATA_URI.fullmatch(named.text)
        if match is None:
            raise BadInput(
                "bad_data_uri", f"--{named.kind} {shown} is not a data: URI of a file", "write data:TYPE;base64,DATA"
            )
        mime = match[1].lower()
        self._check_allowed(named, mime, shown)
        try:
            decoded = base64.b64decode(match[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadInput(
                "bad_data_uri",
                f"--{named.kind} {shown}: its base64 is not valid ({error})",
                "encode it with base64 -w0",
            ) from None
        self._check_size(named, len(decoded), shown)
        self._check_content(named, decoded[: media_types.SNIFFED_BYTES], mime, shown)
        return MediaItem(named.kind, named.text, None, mime, len(decoded))

    def _file(self, named: Named) -> MediaItem:
        self._check_inlining(named)
        path = Path(named.text)
        size, head = _look_at(path, named.kind, self.rules.max_bytes)
        self._check_size(named, size, named.text)
        mime = self._check_content(named, head, self._mime_by_name(path.name), named.text)
        self._check_allowed(named, mime, named.text)
        return MediaItem(named.kind, None, path.absolute(), mime, size)

    def _check_inlining(self, named: Named) -> None:
        tag = _tag(self.image)
        for pattern, accepted, source in self.rules.data_uris:
            if fnmatch.fnmatchcase(tag, pattern):
                if accepted:
                    return
                raise BadInput(
                    "data_uri_refused",
                    f"{self.network_arch} in the image {self.image} takes no local files and no data: URIs ({source})",
                    f"put the file on a web server that the service reaches and give --{named.kind} https://…",
                )

    def _check_size(self, named: Named, size: int, shown: str) -> None:
        if size == 0:
            raise BadInput("empty_file", f"--{named.kind} {shown} is empty", "give a file with something in it")
        if size > self.rules.max_bytes:
            raise BadInput(
                "media_too_large",
                f"--{named.kind} {shown} has {size} bytes; "
                f"{self.network_arch} takes at most {self.rules.max_bytes} ({self.rules.max_bytes // _MIB} MiB)",
                "make it smaller, or give an http(s) URL",
            )

    def _check_content(self, named: Named, head: bytes, by_name: str | None, shown: str) -> str:
        """The MIME type, after its name and its first bytes were found to agree."""
        content = media_types.recognize(head)
        if content is None:
            raise BadInput(
                "not_media",
                f"--{named.kind} {shown} does not begin like any image or video (first bytes: {head[:8].hex(' ')})",
                "check that it is the right file and that its download was complete",
            )
        if by_name is not None and not content.may_be(by_name):
            raise BadInput(
                "media_type_mismatch",
                f"--{named.kind} {shown} is called {by_name} but holds {content.mime}",
                f"rename it to what it is{self._ending_hint(content.mime)}, or convert it",
            )
        return by_name or content.mime

    def _check_allowed(self, named: Named, mime: str, shown: str) -> None:
        endings = {"image": self.rules.image_types, "video": self.rules.video_types}
        tables = {"image": self.wire.image_types, "video": self.wire.video_types}
        if mime in {tables[named.kind][ending] for ending in endings[named.kind]}:
            return
        other = "video" if named.kind == "image" else "image"
        if mime.startswith(f"{other}/"):
            raise BadInput("wrong_media_kind", f"--{named.kind} {shown} is {mime}", f"use --{other}")
        taken = ", ".join(endings[named.kind]) or f"no {named.kind} at all"
        raise BadInput(
            "media_type_refused",
            f"--{named.kind} {shown} is {mime}, which {self.network_arch} does not take",
            f"convert it; taken: {taken}",
        )

    def _mime_by_name(self, name: str) -> str | None:
        ending = Path(name).suffix.lower()
        return self.wire.image_types.get(ending) or self.wire.video_types.get(ending)

    def _ending_hint(self, mime: str) -> str:
        table = {**self.wire.image_types, **self.wire.video_types}
        return next((f" ({ending})" for ending, known in table.items() if known == mime), "")


def _look_at(path: Path, kind: str, max_bytes: int) -> tuple[int, bytes]:
    """The file's size and its first bytes; a file over `max_bytes` is not read at all."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise BadInput("not_a_file", f"--{kind} {path} is {what}", "give the path of one image or video file")
        if status.st_size > max_bytes:
            return status.st_size, b""
        with path.open("rb") as file:
            return status.st_size, file.read(media_types.SNIFFED_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(
            "unreadable_file", f"cannot read --{kind} {path}: {reason}", "check the path and its permissions"
        ) from None


def _tag(image: str) -> str:
    name = image.partition("@")[0].rpartition("/")[2]
    return name.partition(":")[2] or "latest"
