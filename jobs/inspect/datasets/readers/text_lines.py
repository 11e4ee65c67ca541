"""Recognise the encoding of a text file, and stream its lines."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import Any

from jobs.errors import Fault
from jobs.inspect.datasets import data_row
from jobs.inspect.datasets.data_row import FaultHandler

ENCODING_BYTES = 16 * 2**20
"""The encoding of a file is decided by so many of its first bytes."""
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks; UTF-32's begins with UTF-16's."""
UNDEFINED_IN_CP1252 = frozenset(b"\x81\x8d\x8f\x90\x9d")
NUL_SHARE = 0.3
"""A larger share of zeros at even or at odd positions is UTF-16 without a mark."""
ENCODING_NAMES = {"utf-8-sig": "UTF-8", "utf-8": "UTF-8", "cp1252": "Windows-1252",
                  "latin-1": "ISO 8859-1"}  # fmt: skip


def detect_encoding(head: bytes) -> str:
    """Return the encoding that a byte order mark or zeros between the letters tell, or UTF-8."""
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    sample = head[:4096]
    for offset, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros, others = sample[offset::2].count(0), sample[1 - offset :: 2].count(0)
        if len(sample) >= 4 and zeros > NUL_SHARE * len(sample) / 2 and not others:
            return encoding
    return "utf-8"


def detect_table_encoding(head: bytes) -> str:
    """Return the encoding of a table or a text, which office programs also write in Windows-1252.

    It is Windows-1252 if the first 16 MiB are not UTF-8, or ISO 8859-1 if they have bytes that
    Windows-1252 does not define.
    """
    encoding = detect_encoding(head)
    if encoding != "utf-8":
        return encoding
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return "latin-1" if UNDEFINED_IN_CP1252.intersection(head) else "cp1252"
    return encoding


def read_lines(
    raw: io.BufferedReader[Any], file: str, report: FaultHandler, *, encoding: str
) -> Iterator[tuple[int, str]]:
    """Yield numbered lines with their line ends. Bad ones are reported and skipped."""
    has_wide_letters = encoding.startswith(("utf-16", "utf-32"))
    if has_wide_letters or _has_old_line_ends(raw):
        return _read_text(raw, file, report, encoding)
    return _read_bytes(raw, file, report, encoding)


def _has_old_line_ends(raw: io.BufferedReader[Any]) -> bool:
    """Return whether lines end with a carriage return alone, as on old Macs."""
    head = raw.peek(2**16)
    return b"\r" in head[:-1] and b"\n" not in head


def _read_bytes(
    raw: io.BufferedReader[Any], file: str, report: FaultHandler, encoding: str
) -> Iterator[tuple[int, str]]:
    number = 0
    while line := raw.readline(data_row.MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > data_row.MAX_LINE_BYTES:
            return report(_make_length_fault(f"{file}:{number}"))
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield number, line.decode("utf-8" if encoding == "utf-8-sig" else encoding)
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1})"
            report(Fault(f"{file}:{number}", problem, "Save the file as UTF-8."))


def _read_text(
    raw: io.BufferedReader[Any], file: str, report: FaultHandler, encoding: str
) -> Iterator[tuple[int, str]]:
    text = io.TextIOWrapper(raw, encoding=encoding, newline="")
    number = 0
    try:
        while line := text.readline(data_row.MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > data_row.MAX_LINE_BYTES:
                return report(_make_length_fault(f"{file}:{number}"))
            yield number, line
    except UnicodeError:
        name = ENCODING_NAMES.get(encoding, encoding.upper())
        remedy = "Save the file as UTF-8. The rest of the file was not read."
        report(Fault(f"{file}:{number + 1}", f"not {name}", remedy))
    finally:
        text.detach()


def _make_length_fault(location: str) -> Fault:
    problem = f"the line is longer than {data_row.MAX_LINE_BYTES:,} bytes"
    remedy = "Check that each row is one line. The rest of the file was not read."
    return Fault(location, problem, remedy)
