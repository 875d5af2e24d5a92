"""The bytes of a file: hashed while they are read, decompressed, and recoded to UTF-8, in blocks.

Compression and encoding are recognised by content, since suffixes lie: browsers decompress `.gz` while they download,
and shells write UTF-16. The error for a file that cannot be read names what it is.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from nncift.errors import DataError
from nncift.run.options.amounts import size_text

BLOCK = 1 << 20  # bytes per read
HEAD = 1 << 16  # bytes that a format is recognised by
ROW_BYTES = 64 << 20  # longest row, by default
SHOWN = 2000  # characters of a row that is too long

PACKINGS = (".gz", ".bz2", ".xz", ".zst")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, of which it begins with the mark
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def suffix(path: Path) -> str:
    """The suffix of the format, without that of a compression, in lower case."""
    name = path.name.lower()
    return Path(next((name.removesuffix(packing) for packing in PACKINGS if name.endswith(packing)), name)).suffix


class Stream(io.RawIOBase):
    """Bytes that are read in blocks, of which the first can be looked at.

    Args:
        source: reads up to so many bytes; none at the end.
    """

    def __init__(self, source: Callable[[int], bytes]) -> None:
        self._source = source
        self._ahead = b""  # was looked at
        self._taken = 0  # of these

    def head(self, size: int = HEAD) -> bytes:
        """The next bytes, `size` or all that are left, without taking them."""
        parts = [self._ahead[self._taken :]]
        missing = size - len(parts[0])
        while missing > 0 and (more := self._source(missing)):
            parts.append(more)
            missing -= len(more)
        self._ahead, self._taken = b"".join(parts), 0
        return self._ahead[:size]

    def read(self, size: int = BLOCK) -> bytes:
        """Take up to `size` bytes; none at the end."""
        if self._ahead:
            taken = self._ahead[self._taken : self._taken + size]
            self._taken += len(taken)
            if self._taken == len(self._ahead):
                self._ahead, self._taken = b"", 0
            return taken
        return self._source(size)

    def readinto(self, buffer: Any) -> int:
        """Take bytes into a buffer, for the readers of Python."""
        taken = self.read(len(buffer))
        buffer[: len(taken)] = taken
        return len(taken)

    def readable(self) -> bool:
        """Always."""
        return True


class _Hashed(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: IO[bytes]) -> None:
        import xxhash

        self._file = file
        self.hash = xxhash.xxh3_128()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self.hash.update(memoryview(buffer)[:count])
        return count

    def hexdigest(self) -> str:
        """The hash of the whole file."""
        while more := self._file.read(BLOCK):
            self.hash.update(more)
        return self.hash.hexdigest()


@contextlib.contextmanager
def open_stream(path: Path, hashed: Callable[[str], None] | None = None) -> Iterator[Stream]:
    """The decompressed bytes of a file; `hashed` takes the hash of the file, once the block ends without an error."""
    with contextlib.ExitStack() as stack:
        source = _Hashed(stack.enter_context(open(path, "rb", buffering=0)))
        raw = io.BufferedReader(source, BLOCK)
        yield Stream(_unpack(raw).read)
        if hashed is not None:
            hashed(source.hexdigest())


_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def _magic(head: bytes) -> str | None:
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def _unpack(raw: Any) -> Any:
    packing = _magic(raw.peek(8)[:8])
    if packing == "gzip":
        return gzip.GzipFile(fileobj=raw)
    if packing == "bzip2":
        return bz2.BZ2File(raw)
    if packing == "xz":
        return lzma.LZMAFile(raw)
    if packing == "zstd":
        import pyarrow as pa

        return pa.CompressedInputStream(raw, "zstd")
    return raw


@contextlib.contextmanager
def seekable(stream: Stream) -> Iterator[IO[bytes]]:
    """The rest of a stream in a temporary file on disk, for formats that are read at random."""
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(stream, file, BLOCK)
        file.seek(0)
        yield file


# --- encodings -----------------------------------------------------------------------------------------


def as_utf8(stream: Stream, path: Path, name: str) -> Stream:
    """A stream of text in UTF-8 without a byte order mark; UTF-16 and UTF-32 are recoded.

    Raises:
        DataError: the text is in another encoding; the message names the command that converts it.
    """
    head = stream.head()
    mark, encoding = next(((bom, each) for bom, each in _BOMS if head.startswith(bom)), (b"", None))
    stream.read(len(mark))
    encoding = encoding or _wide(head)
    if encoding is None or encoding == "utf-8":
        _check_utf8(stream.head(), path, name)
        return stream
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")

    def read(size: int) -> bytes:
        while taken := stream.read(size):
            if text := decoder.decode(taken):
                return text.encode("utf-8", "surrogatepass")
        return decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")

    return Stream(read)


def _wide(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, by the zero bytes that their first character has: it is of ASCII."""
    zeros = "".join("0" if byte == 0 else "x" for byte in head[:4])
    return {"000x": "utf-32-be", "x000": "utf-32-le", "0x0x": "utf-16-be", "x0x0": "utf-16-le"}.get(zeros)


_INVALID = re.compile(r"[\udc80-\udcff]+")
_FEW = 0.05  # of the lines: more that are not UTF-8 are of another encoding, fewer are bad rows


def _check_utf8(head: bytes, path: Path, name: str) -> None:
    """Refuse text of which more than a few lines are not UTF-8."""
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(head)  # the last character may be cut
    if len(_INVALID.findall(text)) < 2:
        return
    lines = [line for line in text.splitlines() if line.strip()]
    if sum(bool(_INVALID.search(line)) for line in lines) <= _FEW * len(lines):
        return
    found = _encoding(head)
    looks = f"; it looks like {found}" if found else ""
    new = path.with_name(f"{path.name.partition('.')[0]}-utf8{suffix(path)}")
    source = shlex.quote(str(path))
    command = f"iconv -f {found or 'ENCODING'} -t UTF-8 {source} > {shlex.quote(str(new))}"
    if path.suffix.lower() in PACKINGS:
        command = f"decompress it, then {command.replace(source, shlex.quote(str(path.with_suffix(''))))}"
    raise DataError(f"the text is not UTF-8{looks}", f"convert it: {command}", file=name)


_ICONV = {"latin_1": "ISO-8859-1", "mac_roman": "MACINTOSH"}


def _encoding(head: bytes) -> str | None:
    """What the text looks like, as iconv calls it; None where that is open."""
    try:
        import charset_normalizer
    except ImportError:
        return None
    found = list(charset_normalizer.from_bytes(head[: head.rfind(b"\n") + 1] or head))
    names = [match.encoding for match in found]
    if not names:
        return None
    western = names[0].startswith(("cp125", "latin", "iso8859", "mac", "hp_roman", "cp8", "cp4", "cp5", "cp7"))
    best = "cp1252" if western and "cp1252" in names else names[0]  # alike to the eye, and by far the most frequent
    return _ICONV.get(best, best.upper().replace("_", "-"))


# --- lines ---------------------------------------------------------------------------------------------


def skip_blank(stream: Stream) -> int:
    """Skip blank blocks at the beginning; the number of lines skipped."""
    skipped = 0
    while (head := stream.head()) and head.isspace():
        skipped += stream.read(len(head)).count(b"\n")
    return skipped


def lines(stream: Stream, limit: int, first: int = 1) -> Iterator[tuple[int, bytes, int]]:
    """The lines of a stream that are not blank: number from `first`, the line without its end, and its bytes.

    Of a line of more than `limit` bytes only the beginning is given, and memory holds no more than that.
    """
    number, parts, size = first, [b""], 0  # of the line that the last block has begun
    while block := stream.read(BLOCK):
        if not size and block.isspace():  # millions of empty lines
            number += block.count(b"\n")
            continue
        *whole, last = block.split(b"\n")
        for i, line in enumerate(whole):
            length = len(line)
            if i == 0 and size:
                line, length = b"".join((*parts, line)), size + length
                parts, size = [b""], 0
            if length > limit:
                yield number, line[: 4 * SHOWN], length
            elif line and not line.isspace():
                yield number, line, length
            number += 1
        parts.append(last)
        size += len(last)
        if size > limit:
            parts = [b"".join(parts)[: 4 * SHOWN]]
    line = b"".join(parts)
    if line and not line.isspace():
        yield number, line[: 4 * SHOWN] if size > limit else line, size


def shown(text: bytes) -> str:
    """Text for a list of bad rows."""
    return text.decode("utf-8", "replace")


def too_long(size: int, limit: int) -> str:
    """The reason of a row that is longer than allowed."""
    return f"{size_text(size)}, more than `max_row_bytes` ({size_text(limit)})"
