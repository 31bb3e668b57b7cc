"""What an image or video file is by its first bytes, whatever its name says.

Follows the formats' own specifications: PNG, JPEG, GIF, RIFF (WebP, AVI), BMP, TIFF, ISO base media and QuickTime
(`ftyp`, or a leading QuickTime atom), EBML (Matroska, WebM).
"""

from __future__ import annotations

from dataclasses import dataclass

SNIFFED_BYTES = 4096


@dataclass(frozen=True)
class Content:
    """What a file holds: its MIME type, and those others that its bytes may rightly be called as well."""

    mime: str
    also: tuple[str, ...] = ()

    def may_be(self, mime: str) -> bool:
        """Whether a file of that type may begin with these bytes."""
        return mime == self.mime or mime in self.also


_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"II+\x00", "image/tiff"),
    (b"MM\x00+", "image/tiff"),
)
_RIFF_FORMS = {b"WEBP": "image/webp", b"AVI ": "video/avi"}
_HEIF_BRANDS = {
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heif",
    b"avif": "image/avif",
    b"avis": "image/avif",
}
_QUICKTIME_ATOMS = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
_EBML = b"\x1a\x45\xdf\xa3"
_EBML_DOC_TYPE = b"\x42\x82"


def recognize(head: bytes) -> Content | None:
    """What the first SNIFFED_BYTES of a file (or all of a shorter one) say it is; None where they say nothing known."""
    for magic, mime in _MAGIC:
        if head.startswith(magic):
            return Content(mime)
    if head[:4] == b"RIFF" and head[8:12] in _RIFF_FORMS:
        return Content(_RIFF_FORMS[head[8:12]])
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return Content("image/bmp")
    if head[:4] == _EBML:
        return _matroska(head)
    return _iso_base_media(head)


def _matroska(head: bytes) -> Content | None:
    at = head.find(_EBML_DOC_TYPE)
    doc_type = head[at + 3 : at + 3 + (head[at + 2] & 0x7F)] if 0 <= at < len(head) - 2 else b""
    if doc_type == b"webm":
        # WebM is Matroska with fewer codecs, so it may be called Matroska; not the other way round.
        return Content("video/webm", ("video/x-matroska",))
    return Content("video/x-matroska") if doc_type == b"matroska" else None


def _iso_base_media(head: bytes) -> Content | None:
    atom, brand = head[4:8], head[8:12]
    if atom == b"ftyp":
        if brand in _HEIF_BRANDS:
            return Content(_HEIF_BRANDS[brand])
        if brand == b"qt  ":
            return Content("video/mov")
        # Many cameras write MP4 files and name them .mov; QuickTime readers take them.
        return Content("video/mp4", ("video/mov",))
    return Content("video/mov") if atom in _QUICKTIME_ATOMS else None
