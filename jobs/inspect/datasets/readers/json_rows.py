"""Stream the rows of JSON files: lines, arrays, arrays in an object, and objects over lines."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Generator, Iterator
from typing import Any

from jobs.errors import Fault
from jobs.inspect.datasets import data_row
from jobs.inspect.datasets.data_row import COPY_AGAIN, UNREAD, FaultHandler, Row, make_type_fault
from jobs.inspect.datasets.readers.text_lines import read_lines
from jobs.inspect.datasets.splits import SPLIT_WORDS

WRAPPER_NAMES = frozenset(
    {
        "data",
        "dataset",
        "rows",
        "examples",
        "instances",
        "items",
        "records",
        "samples",
        *SPLIT_WORDS,
    }
)
"""Keys of an object whose array holds the rows of a file."""
MESSAGE_NAMES = ({"role", "content"}, {"from", "value"})
ENDLESS = "truncated: the array never ends"
CHUNK_BYTES = 2**20
CUT_MARGIN = 16
"""An error so close to the end of what has been read may be a value that goes on."""
_WHITESPACE = re.compile(r"[ \t\r\n]*")
_OBJECT_START = re.compile(r'\{\s*"')


def read_json(
    raw: io.BufferedReader[Any], file: str, report: FaultHandler, *, encoding: str
) -> Iterator[Row]:
    """Yield the rows of an array, of an object that holds one array, or of a sequence of objects.

    One value at a time is in memory, and each row has the line that it begins on.
    """
    head = raw.peek(CHUNK_BYTES).decode(encoding, errors="ignore").lstrip("\ufeff \t\r\n")
    wrapper = _find_wrapper(head)
    if head.startswith("[") or wrapper:
        return _read_array(_JsonStream(raw, encoding), file, report, wrapper)
    if _OBJECT_START.match(head) and not _is_whole_line(head):
        return _read_sequence(_JsonStream(raw, encoding), file, report)
    return _read_json_lines(raw, file, report, encoding)


def _is_whole_line(head: str) -> bool:
    """Return whether the first line is a value, or one that only a longer line could complete."""
    line, line_end, rest = head.partition("\n")
    if not line_end or not rest.strip():
        return True
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        # A line of an object over lines ends behind a comma, a colon or a bracket.
        return error.pos < len(line.rstrip()) or not line.rstrip().endswith((",", ":", "{", "["))
    except (ValueError, RecursionError):
        return True
    return True


def _find_wrapper(head: str) -> str | None:
    """Return the key of the array that holds the rows, if the file is an object around it."""
    if not head.startswith("{"):
        return None
    decoder, position = json.JSONDecoder(), 1
    while True:
        try:
            name, position = decoder.raw_decode(head, _skip_space(head, position))
            position = _skip_space(head, position)
            if not isinstance(name, str) or head[position : position + 1] != ":":
                return None
            position = _skip_space(head, position + 1)
            if name in WRAPPER_NAMES and _is_array_of_rows(head, position):
                return name
            _, position = decoder.raw_decode(head, position)
        except (ValueError, RecursionError):
            return None
        position = _skip_space(head, position)
        if head[position : position + 1] != ",":
            return None
        position += 1


def _is_array_of_rows(head: str, position: int) -> bool:
    """Return whether an array of objects begins here. Messages are not rows, but part of one."""
    if head[position : position + 1] != "[":
        return False
    position = _skip_space(head, position + 1)
    if head[position : position + 1] != "{":
        return False
    try:
        value, _ = json.JSONDecoder().raw_decode(head, position)
    except (ValueError, RecursionError):
        return True
    return not any(names <= value.keys() for names in MESSAGE_NAMES)


def _skip_space(text: str, position: int) -> int:
    match = _WHITESPACE.match(text, position)
    return match.end() if match else len(text)


def _read_json_lines(
    raw: io.BufferedReader[Any], file: str, report: FaultHandler, encoding: str
) -> Iterator[Row]:
    is_first = True
    for number, line in read_lines(raw, file, report, encoding=encoding):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            location = f"{file}:{number}"
            if is_first and _is_no_json(line, error):
                return report(_make_kind_fault(location, line))
            report(_make_line_fault(location, error, is_cut=not line.endswith(("\n", "\r"))))
            is_first = False
            continue
        is_first = False
        if isinstance(value, dict):
            yield Row(value, file, number)
        else:
            report(make_type_fault(f"{file}:{number}", value))


def _is_no_json(line: str, error: Exception) -> bool:
    starts_wrong = isinstance(error, json.JSONDecodeError) and error.pos == 0
    return starts_wrong and line.endswith("\n") and not line.lstrip().startswith(("{", "["))


def _make_kind_fault(location: str, line: str) -> Fault:
    problem = f"invalid JSON: the first line is {line.strip()[:60]!r}"
    remedy = "Rename the file to .csv or .txt if it is one, or write one JSON object per line."
    return Fault(location, problem, remedy)


def _make_line_fault(location: str, error: Exception, *, is_cut: bool) -> Fault:
    if is_cut:
        return Fault(location, "invalid JSON: the last line is truncated", COPY_AGAIN)
    reason = _describe_error(error)
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg}, column {error.colno}"
    remedy = "Write one object per line, or one array in a .json file."
    return Fault(location, f"invalid JSON ({reason})", remedy)


def _describe_error(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "values are nested too deeply"
    return "a number has too many digits" if "digits" in str(error) else str(error)


class _JsonStream:
    """JSON text that is read as far as the next value needs."""

    def __init__(self, raw: io.BufferedReader[Any], encoding: str) -> None:
        self._raw, self._decoder = raw, json.JSONDecoder()
        encoding = "utf-8-sig" if encoding == "utf-8" else encoding
        self._decode = codecs.getincrementaldecoder(encoding)().decode
        self._text, self._position, self._line, self._counted = "", 0, 1, 0
        self._has_ended, self.is_undecodable = False, False

    @property
    def line(self) -> int:
        """The line of the current position."""
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    @property
    def last_line(self) -> int:
        """The line of the end of what has been read."""
        return self.line + self._text.count("\n", self._position)

    def peek(self) -> str:
        """Return the next character that is no whitespace, or an empty string at the end."""
        while True:
            self._position = _skip_space(self._text, self._position)
            if self._position < len(self._text):
                return self._text[self._position]
            if self._has_ended:
                return ""
            self._read_more()

    def take(self) -> str:
        """Return the next character that is no whitespace, and step over it."""
        character = self.peek()
        self._position += len(character)
        return character

    def read_value(self) -> Any:
        """Return the next value. Raise ValueError or RecursionError."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if self._has_ended or self._is_definite(error):
                    raise
            else:
                # A number at the end of what has been read may go on.
                if end < len(self._text) or self._has_ended:
                    self._position = end
                    return value
            if len(self._text) - self._position > data_row.MAX_LINE_BYTES:
                raise ValueError(f"a value is longer than {data_row.MAX_LINE_BYTES:,} characters")
            self._read_more()

    def is_cut(self, error: Exception) -> bool:
        """Return whether the text ended inside the value that this error is about."""
        if not isinstance(error, json.JSONDecodeError) or not self._has_ended:
            return False
        return error.pos >= len(self._text.rstrip()) or error.msg.startswith("Unterminated string")

    def _is_definite(self, error: json.JSONDecodeError) -> bool:
        is_close = error.pos >= len(self._text) - CUT_MARGIN
        return not is_close and not error.msg.startswith("Unterminated string")

    def _read_more(self) -> None:
        _ = self.line
        self._text = self._text[self._position :]
        self._position = self._counted = 0
        # As much again as is waiting: a value of n bytes is tried log(n) times.
        chunk = self._raw.read(max(CHUNK_BYTES, len(self._text)))
        try:
            self._text += self._decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            self._text += error.object[: error.start].decode(error.encoding, errors="ignore")
            self._has_ended = self.is_undecodable = True
        self._has_ended |= not chunk


def _read_array(
    stream: _JsonStream, file: str, report: FaultHandler, wrapper: str | None
) -> Iterator[Row]:
    if wrapper is not None:
        _enter_wrapper(stream, wrapper)
    stream.take()
    if stream.peek() == "]":
        stream.take()
    else:
        is_complete = yield from _read_elements(stream, file, report)
        if not is_complete:
            return
    problem = _leave_wrapper(stream) if wrapper is not None else None
    if problem is None and stream.peek():
        problem = "invalid JSON after an element: the file goes on behind the array"
    if problem:
        report(Fault(f"{file}:{stream.line}", problem, UNREAD))


def _read_elements(
    stream: _JsonStream, file: str, report: FaultHandler
) -> Generator[Row, None, bool]:
    """Yield the elements of an array, and return whether its end was reached."""
    while True:
        is_read = yield from _read_value(stream, file, report)
        if not is_read:
            return False
        location, separator = f"{file}:{stream.line}", stream.take()
        if separator == "]":
            return True
        if separator != ",":
            problem = "invalid JSON after an element" if separator else ENDLESS
            report(Fault(location, problem, UNREAD if separator else COPY_AGAIN))
            return False


def _read_sequence(stream: _JsonStream, file: str, report: FaultHandler) -> Iterator[Row]:
    """Yield values that follow one another, each over several lines."""
    while stream.peek():
        is_read = yield from _read_value(stream, file, report)
        if not is_read:
            return


def _read_value(stream: _JsonStream, file: str, report: FaultHandler) -> Generator[Row, None, bool]:
    """Yield the next value as a row, and return whether it could be read."""
    stream.peek()
    line = stream.line
    try:
        value = stream.read_value()
    except (ValueError, RecursionError) as error:
        report(_make_value_fault(stream, file, line, error))
        return False
    if isinstance(value, dict):
        yield Row(value, file, line)
    else:
        report(make_type_fault(f"{file}:{line}", value))
    return True


def _make_value_fault(stream: _JsonStream, file: str, line: int, error: Exception) -> Fault:
    if stream.is_undecodable:
        return Fault(f"{file}:{stream.last_line}", "not UTF-8", "Save the file as UTF-8.")
    location = f"{file}:{line}"
    if stream.is_cut(error):
        return Fault(location, ENDLESS, COPY_AGAIN)
    reason = error.msg if isinstance(error, json.JSONDecodeError) else _describe_error(error)
    return Fault(location, f"invalid JSON ({reason})", UNREAD)


def _enter_wrapper(stream: _JsonStream, name: str) -> None:
    """Step into the object up to its array, which has been seen in the head of the file."""
    stream.take()
    while stream.read_value() != name:
        stream.take()
        stream.read_value()
        stream.take()
    stream.take()


def _leave_wrapper(stream: _JsonStream) -> str | None:
    """Step behind the object around the array. Return what is wrong with it, if anything."""
    while stream.take() == ",":
        try:
            name = stream.read_value()
            stream.take()
            value = stream.read_value()
        except (ValueError, RecursionError):
            return "invalid JSON behind the array"
        if name in WRAPPER_NAMES and isinstance(value, list):
            return f"the file has more than one array of rows, the second is {name!r}"
    return None
