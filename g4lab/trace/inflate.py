"""A file's bytes in blocks, decompressed where it is a gzip file; a stream that breaks off is reported, not raised."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

BLOCK = 1 << 20
GZIP = b"\x1f\x8b"


def blocks(file: BinaryIO, report: Callable[[str], None]) -> Iterator[bytes]:
    """Yield what can be read, in blocks of at most 1 MB; `report` gets one line on what cannot."""
    data = file.read(BLOCK)
    if not data.startswith(GZIP):
        while data:
            yield data
            data = file.read(BLOCK)
        return
    stream = zlib.decompressobj(wbits=31)
    while data:
        try:
            block = stream.decompress(data, BLOCK)
        except zlib.error as error:
            report(f"the gzip stream is damaged and cannot be read to its end ({error})")
            return
        if block:
            yield block
        data = stream.unconsumed_tail
        if stream.eof:  # a gzip file may hold several streams, and padding behind the last
            data = (stream.unused_data + file.read(BLOCK)).lstrip(b"\x00")
            if data and not data.startswith(GZIP):
                report("there are bytes behind the end of the gzip stream")
                return
            if not data:
                return
            stream = zlib.decompressobj(wbits=31)
        data = data or file.read(BLOCK)
    report("the gzip stream stops before its end: the file was cut")
