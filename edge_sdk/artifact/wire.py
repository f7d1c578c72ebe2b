"""The protobuf wire format, read strictly: truncated, over-long, repeated or unknown fields are UnsafeModel.

Only what an ONNX file needs. A lenient reader would be dangerous here: protobuf *merges* a singular
message that occurs twice, so a check that looks at one of the two would not see what is later run.
Source: protobuf encoding specification, sections "Base 128 Varints" and "Last One Wins".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from edge_sdk.artifact.errors import UnsafeModel

Kind = Literal["int", "ints", "float", "floats", "bytes", "many"]

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5
_EMPTY: Final = memoryview(b"")
# A plural number may come packed (one length-delimited field) or one by one; both readers must agree.
_WIRES: Final[dict[str, tuple[int, ...]]] = {
    "int": (VARINT,),
    "ints": (VARINT, BYTES),
    "float": (FIXED32,),
    "floats": (FIXED32, BYTES),
    "bytes": (BYTES,),
    "many": (BYTES,),
}
_PLURAL: Final = ("ints", "floats", "many")


class Field(NamedTuple):
    """One field: `integer` for varints, else `data`; the offsets count from the start of the file."""

    number: int
    wire: int
    integer: int
    data: memoryview
    start: int  # of the tag
    at: int  # of the payload
    end: int


@dataclass(frozen=True)
class Layout:
    """What one message may hold: field number to kind, and the numbers refused with their reason."""

    name: str
    kinds: Mapping[int, Kind]
    refused: Mapping[int, str]


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """(unsigned 64-bit value, offset after it)."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise UnsafeModel("truncated", "the file ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
    raise UnsafeModel("wire", "a number is longer than 64 bits")


def signed(value: int) -> int:
    """The int64 that an unsigned 64-bit varint stands for."""
    return value - (1 << 64) if value >> 63 else value


def write_varint(value: int) -> bytes:
    """Shortest encoding of a non-negative number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_bytes(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return write_varint(number << 3 | BYTES) + write_varint(len(payload)) + payload


def fields(data: memoryview, base: int = 0) -> Iterator[Field]:
    """Every field of a message whose first byte is at file offset `base`."""
    at = 0
    while at < len(data):
        start = at
        tag, at = read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        integer, payload, size = 0, _EMPTY, 0
        if wire == VARINT:
            integer, after = read_varint(data, at)
            size = after - at
        elif wire == BYTES:
            size, at = read_varint(data, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise UnsafeModel("wire", f"wire type {wire} is not used by ONNX")
        if size > len(data) - at:
            raise UnsafeModel("truncated", f"field {number} is longer than the rest of the file")
        if wire != VARINT:
            payload = data[at : at + size]
        yield Field(number, wire, integer, payload, base + start, base + at, base + at + size)
        at += size


class Message:
    """The fields of one message by number, checked against its layout."""

    def __init__(self, data: memoryview, base: int, layout: Layout) -> None:
        self._layout = layout
        self._fields: dict[int, list[Field]] = {}
        for field in fields(data, base):
            self._admit(field)
            self._fields.setdefault(field.number, []).append(field)

    def _admit(self, field: Field) -> None:
        name, number = self._layout.name, field.number
        if number in self._layout.refused:
            reason = self._layout.refused[number]
            raise UnsafeModel(reason, f"{name} holds {reason.replace('-', ' ')}: export it without")
        kind = self._layout.kinds.get(number)
        if kind is None:
            raise UnsafeModel("unknown-field", f"{name} holds the unknown field {number}")
        if field.wire not in _WIRES[kind]:
            raise UnsafeModel("wire", f"field {number} of {name} has wire type {field.wire}")
        if kind not in _PLURAL and number in self._fields:
            raise UnsafeModel("repeated-field", f"field {number} of {name} occurs twice")

    def all(self, number: int) -> list[Field]:
        """Every occurrence of the field, in file order."""
        return self._fields.get(number, [])

    def has(self, number: int) -> bool:
        """Whether the field occurs."""
        return number in self._fields

    def one(self, number: int) -> Field | None:
        """The only occurrence of a singular field."""
        found = self._fields.get(number)
        return found[0] if found else None

    def text(self, number: int) -> str:
        """A UTF-8 string, empty where absent."""
        return as_text(self.data(number))

    def texts(self, number: int) -> list[str]:
        """Every UTF-8 string of a repeated field."""
        return [as_text(field.data) for field in self.all(number)]

    def data(self, number: int) -> memoryview:
        """The payload of a singular field, empty where absent."""
        field = self.one(number)
        return field.data if field else _EMPTY

    def integer(self, number: int, default: int = 0) -> int:
        """An int64."""
        field = self.one(number)
        return signed(field.integer) if field else default

    def integers(self, number: int) -> list[int]:
        """Repeated int64, packed or not."""
        values: list[int] = []
        for field in self.all(number):
            if field.wire == VARINT:
                values.append(signed(field.integer))
                continue
            at = 0
            while at < len(field.data):
                value, at = read_varint(field.data, at)
                values.append(signed(value))
        return values

    def floats(self, number: int) -> list[float]:
        """Repeated float32, packed or not."""
        values: list[float] = []
        for field in self.all(number):
            if len(field.data) % 4:
                raise UnsafeModel("wire", "a packed list of floats is not a multiple of 4 bytes")
            values.extend(struct.unpack(f"<{len(field.data) // 4}f", field.data))
        return values


def as_text(data: memoryview) -> str:
    """UTF-8 or UnsafeModel."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise UnsafeModel("encoding", "a name in the file is not UTF-8") from error
