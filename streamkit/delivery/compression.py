"""Bodies made smaller: what each compression is called, how its objects end and what they say of themselves."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from streamkit.errors import InvalidUse
from streamkit.runtime.libraries import library

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)          # the same bytes whenever it is made


@dataclass(frozen=True, slots=True)
class Compression:
    """encoding: for Content-Encoding, "" for none. compress(body, name) gives the same bytes for the same body."""

    extension: str
    encoding: str
    compress: Callable[[bytes, str], bytes]


def compression(name: str, level: int | None = None) -> Compression:
    """Raises InvalidUse for an unknown name, MissingLibrary."""
    make = _KNOWN.get(name)
    if make is None:
        raise InvalidUse(f"compression {name!r} is unknown", try_=f"one of {', '.join(sorted(_KNOWN))}",
                         argument="compression")
    return make(level)


def _none(level: int | None) -> Compression:
    return Compression("", "", lambda body, _: body)


def _gzip(level: int | None) -> Compression:
    return Compression(".gz", "gzip", lambda body, _: gzip.compress(body, 1 if level is None else level, mtime=0))


def _zip(level: int | None) -> Compression:
    def compress(body: bytes, name: str) -> bytes:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), body, zipfile.ZIP_DEFLATED, level)
        return made.getvalue()

    return Compression(".zip", "zip", compress)


def _zstd(level: int | None) -> Compression:
    zstandard = library("zstandard", "zstd")
    return Compression(
        ".zst", "zstd", lambda body, _: bytes(zstandard.ZstdCompressor(level=level or 3).compress(body))
    )


def _lz4(level: int | None) -> Compression:
    frame = import_module("lz4.frame")
    return Compression(".lz4", "lz4", lambda body, _: bytes(frame.compress(body, compression_level=level or 0)))


_KNOWN: dict[str, Callable[[int | None], Compression]] = {
    "none": _none, "gzip": _gzip, "zip": _zip, "zstd": _zstd, "lz4": _lz4,
}
