"""Answers that belong in a file: base64 media always, text where the user names a file. Nothing half-written remains.

Whether the file can be written is found out before the request is sent; and if the disk fills up meanwhile, the answer
that took minutes of GPU time is kept wherever there is room.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from inference_service.chat import Completion, invalid_answer
from inference_service.errors import BadInput, ToolError
from inference_service.references import Wire

LARGEST_PRINTED = 8192
_MEDIA_ANSWER = re.compile(r"data:([a-z0-9.+-]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)
# A multiple of 4 characters, so that each slice decodes by itself.
_SLICE = 4 << 20

Write = Callable[[BinaryIO], None]


@dataclass(frozen=True)
class SavedFile:
    """A file that an answer was written to; `bytes` is its size."""

    path: Path
    bytes: int
    mime: str

    def document(self) -> dict[str, Any]:
        """The file as JSON."""
        return {"path": str(self.path), "bytes": self.bytes, "mime": self.mime}


@dataclass(frozen=True)
class Destination:
    """Where an answer's file goes: `named` by the user, or `stem` in the folder we were called in."""

    named: Path | None
    stem: Path

    def check(self, file_expected: bool) -> None:
        """Refuse (BadInput) a place that cannot be written; nothing is left there.

        `file_expected`: the answer will be a file even where the user named none.
        """
        if self.named is None and not file_expected:
            return
        path = self.named or self.stem
        if path.exists() and not path.is_file():
            raise BadInput("output_not_a_file", f"--output {path} is not a regular file", "give the name of a file")
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:100]}."):
                pass
        except OSError as error:
            raise BadInput(
                "output_not_writable",
                f"the answer could not be written to {path}: {error.strerror}",
                "give --output FILE in an existing folder that you can write",
            ) from None


def keep(completion: Completion, destination: Destination, wire: Wire) -> tuple[str | None, list[SavedFile]]:
    """Write to files what belongs there; the text to print (None for media), and the files.

    Text goes to a file only where the user named one, and is then cut to LARGEST_PRINTED characters for printing.

    Raises:
        ToolError: the media's base64 is broken, or a file could not be written; the message says where the answer is.
    """
    media = _MEDIA_ANSWER.match(completion.content)
    if media:
        mime = media[1].lower()
        path = destination.named or _unused(destination.stem.with_name(destination.stem.name + _ending(mime, wire)))
        saved = _save(path, mime, lambda file: _decode(completion.content, media.end(), file))
        return None, [saved]
    if destination.named is None:
        return completion.content, []
    text = completion.content
    saved = _save(destination.named, "text/plain; charset=utf-8", lambda file: _write_text(text, file))
    return text if len(text) <= LARGEST_PRINTED else f"{text[:LARGEST_PRINTED]}…", [saved]


def _write_text(text: str, file: BinaryIO) -> None:
    file.write(text.encode("utf-8"))


def _decode(content: str, start: int, file: BinaryIO) -> None:
    try:
        for at in range(start, len(content), _SLICE):
            file.write(base64.b64decode(content[at : at + _SLICE], validate=True))
    except (binascii.Error, ValueError) as error:
        raise invalid_answer(f"its base64 is not valid ({error})", content[:4096].encode()) from None


def _save(path: Path, mime: str, write: Write) -> SavedFile:
    try:
        return SavedFile(path.absolute(), _write_atomically(path, write), mime)
    except OSError as error:
        raise _kept_elsewhere(path, mime, write, error) from error


def _kept_elsewhere(path: Path, mime: str, write: Write, error: OSError) -> ToolError:
    """The error that says where the answer is now that `path` could not be written."""
    refuge = Path(tempfile.gettempdir()) / f"unsaved-{path.name}"
    problem = f"the answer could not be written to {path}: {error.strerror}"
    try:
        refuge = _unused(refuge)
        saved = SavedFile(refuge, _write_atomically(refuge, write), mime)
    except OSError:
        lost = f"{problem}; nor to {refuge}, so it is lost"
        return ToolError("answer_not_saved", lost, "free some disk space, and send it again")
    move = f"free some disk space, then: mv {shlex.quote(str(refuge))} {shlex.quote(str(path))}"
    return ToolError("answer_not_saved", f"{problem}; it is kept in {refuge}", move, files=[saved.document()])


def _write_atomically(path: Path, write: Write) -> int:
    """Write the file whole or not at all; its size in bytes."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return size


def _umask() -> int:
    # There is no way to only look at it; this program has one thread when it gets here.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _unused(path: Path) -> Path:
    """The path, or with a number behind its name where something is there already."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def _ending(mime: str, wire: Wire) -> str:
    known: Mapping[str, str] = {**wire.image_types, **wire.video_types}
    return next((ending for ending, of in known.items() if of == mime), ".bin")
