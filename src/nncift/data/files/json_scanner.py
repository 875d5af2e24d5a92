"""JSON text token by token: each value with its own text, in memory that a value needs, never the file."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

from nncift.data.files.streams import SHOWN, Stream

CHUNK = 1 << 20  # bytes per read

_SPACE = re.compile(r"[ \t\r\n]*+")
_LINE_BREAK = re.compile(r"[\r\n][ \t\r\n]*")  # always between tokens: in a JSON string it is escaped
_IN_STRING = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_OUTSIDE = re.compile(r'[^"\[\]{}]*+')
_SCALAR = re.compile(r"[^,\[\]{}\s]*+")


class TooLong(ValueError):
    """A value is longer than the limit."""


class Scanner:
    """Reads JSON values and the signs between them.

    Args:
        stream: text in UTF-8; invalid bytes become lone surrogates, which valid UTF-8 cannot encode.
        limit: bytes of the longest value that is read.

    Attributes:
        items: how many items were begun, for messages.
    """

    def __init__(self, stream: Stream, limit: int) -> None:
        self.limit = limit
        self.items = 0
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._decoder_ended = False
        self._buffer = ""
        self._at = 0
        self._passed = 0
        self._json = json.JSONDecoder()

    @classmethod
    def of(cls, text: str, limit: int) -> Scanner:
        """A scanner of a text."""
        scanner = cls(Stream(lambda size: b""), limit)
        scanner._buffer = text
        return scanner

    @property
    def position(self) -> int:
        """Characters before the place in the text."""
        return self._passed + self._at

    def begin_item(self) -> int:
        """Count an item; its number from 1."""
        self.items += 1
        return self.items

    def symbol(self) -> str:
        """Skip white space and return the next character; empty at the end."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._buffer) or not self._more():
                return self._buffer[self._at : self._at + 1]

    def expect(self, allowed: str) -> str:
        """Take the next character, which must be one of these.

        Raises:
            JSONDecodeError: it is not.
        """
        found = self.symbol()
        if not found or found not in allowed:
            raise self._error(f"{' or '.join(allowed)} expected, not {found or 'the end'}")
        self._at += 1
        return found

    def expect_end(self) -> None:
        """Raise JSONDecodeError if anything follows."""
        if self.symbol():
            raise self._error("something follows it")

    def value(self) -> tuple[Any, str]:
        """Take the value here, with its text on one line; the buffer grows only for longer ones.

        Raises:
            TooLong: it is longer than the limit; nothing is taken.
            JSONDecodeError: it is no JSON.
        """
        while True:
            try:
                value, end = self._json.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if not self._may_be_cut(error):
                    raise
                if len(self._buffer) - self._at > self.limit:
                    raise TooLong from error
                if not self._more():
                    raise
                continue
            if end == len(self._buffer) and self._more():  # a number may continue
                continue
            text = self._buffer[self._at : end]
            if len(text) > self.limit or (len(text) > self.limit // 4 and _size(text) > self.limit):
                raise TooLong
            self._at = end
            return value, _LINE_BREAK.sub(" ", text)

    def beginning(self) -> str:
        """The text from here, for a list of bad rows."""
        text = _LINE_BREAK.sub(" ", self._buffer[self._at : self._at + SHOWN])
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def skip(self, depth: int = 0) -> int:
        """Skip the value here, or what is left of as many open brackets, whatever its length; its characters."""
        start, in_string = self.position, False
        if not depth and self.symbol() not in ("", '"', "[", "{"):
            return self._skip_scalar(start)
        while True:
            self._at = (_IN_STRING if in_string else _OUTSIDE).match(self._buffer, self._at).end()  # type: ignore[union-attr]
            sign = self._buffer[self._at : self._at + 1]
            if sign in ("", "\\"):  # the end of the buffer
                if not self._more():
                    raise self._error("the end is missing")
                continue
            self._at += 1
            if sign == '"':
                in_string = not in_string
            else:
                depth += 1 if sign in "[{" else -1
            if not depth and not in_string:
                return self.position - start

    def _skip_scalar(self, start: int) -> int:
        while True:
            self._at = _SCALAR.match(self._buffer, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._buffer) or not self._more():
                return self.position - start

    def _more(self) -> bool:
        ahead = len(self._buffer) - self._at
        size = max(CHUNK, ahead)  # doubles: linear time for a long value
        while not self._decoder_ended:
            read = self._stream.read(size)
            self._decoder_ended = not read
            if text := self._decoder.decode(read, final=not read):
                self._passed += self._at
                self._buffer, self._at = self._buffer[self._at :] + text, 0
                return True
        return False

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the buffer's end may cause the error: in an open string, or within a literal."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._buffer.rstrip()) - 16

    def _error(self, message: str) -> json.JSONDecodeError:
        return json.JSONDecodeError(message, self._buffer, self._at)


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
