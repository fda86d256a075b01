"""Structured clone between Python and JavaScript: what Electron lets cross between its processes, as bytes.

| JavaScript                  | Python                                                                              |
|-----------------------------|-------------------------------------------------------------------------------------|
| undefined                   | `undefined`                                                                         |
| null                        | None                                                                                |
| boolean                     | bool                                                                                |
| number                      | int where it is one of at most 2**53, else float (NaN, infinities and -0.0 too)     |
| bigint                      | `BigInt`, an int; a plain int beyond 2**53 becomes a bigint                         |
| string                      | str; lone surrogates are kept                                                       |
| object                      | dict whose keys are all str                                                         |
| Array                       | list; a tuple becomes one; with holes or extra properties `SparseArray`             |
| Map                         | `Map`; a dict with any other key becomes one                                        |
| Set                         | `Set`; a set or frozenset becomes one                                               |
| Uint8Array                  | bytes                                                                               |
| Uint8ClampedArray           | `Uint8ClampedArray`, which is bytes                                                 |
| other typed arrays          | numpy arrays of the same dtype; a memoryview or array.array becomes one             |
| ArrayBuffer                 | bytearray                                                                           |
| DataView                    | `DataView`                                                                          |
| Date                        | datetime in UTC, of milliseconds; outside of Python's years, or invalid: `Date`     |
| RegExp                      | `RegExp`; a re.Pattern becomes one                                                  |
| Error                       | `Error`, an exception; any exception becomes one                                    |
| Number, String, ... objects | `Boxed`                                                                             |
| MessagePort                 | one of the `ports`                                                                  |

A naive datetime is local time, as for Python. A RegExp is not compiled on arrival: the other side may be hostile, and
the two languages' patterns differ. Map and Set keep JavaScript's order and its idea of what is the same key, and are
equal to the dict and the set of the same contents. Whatever is no value in this table cannot be cloned, as in Electron.

The format, little-endian, read and written in the same way by clone.js:

    header    two bytes: 0xEC, version 1
    value     a tag and what follows it
    contents  of each container, in the order in which the containers were first mentioned

A container is only *mentioned* where it stands; its contents come later. So no depth of nesting needs a stack, and
cycles cost nothing. Every value that has an identity has a number, counted from 0 in the order of mention.

    _ undefined    n null    t true    f false    i int32    d float64
    s string: u32, UTF-8    S string with lone surrogates: u32 bytes, UTF-16
    g bigint: u8 negative, u32, magnitude
    # one that was mentioned before: u32 number    p port: u32 index in the transfer list (it has no number)
    D Date: float64 milliseconds    R RegExp: source, flags (values s or S)    x boxed: a primitive value
    b ArrayBuffer: u32, bytes    v view: u8 kind (TYPES), u32 byte offset, u32 elements, then its buffer: b or #;
                                    the number of the buffer comes first
    o object      contents: u32, then so many keys (values s or S) and values
    a Array       contents: u32, then so many values
    A Array       contents: u32 length, u32, so many (u32 index, value), u32, so many keys and values
    m Map         contents: u32, then so many keys and values
    e Set         contents: u32, then so many values
    E Error: u8 name (NAMES)    contents: u8 which (1 message, 2 stack, 4 cause), then those, as values

Nothing that is read is trusted: `decode` checks every length against what is there before it makes room for it.
"""

from __future__ import annotations

import array
import math
import re
import struct
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, MutableMapping, MutableSet, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

HEADER = b"\xec\x01"
SAFE = 2**53  # the integers up to here are numbers in JavaScript, exactly
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NAMES = ("Error", "EvalError", "RangeError", "ReferenceError", "SyntaxError", "TypeError", "URIError")
"""The names an error keeps; any other becomes "Error", as in V8."""
TYPES = (
    ("DataView", "u1"), ("Int8Array", "i1"), ("Uint8Array", "u1"), ("Uint8ClampedArray", "u1"), ("Int16Array", "i2"),
    ("Uint16Array", "u2"), ("Int32Array", "i4"), ("Uint32Array", "u4"), ("Float16Array", "f2"), ("Float32Array", "f4"),
    ("Float64Array", "f8"), ("BigInt64Array", "i8"), ("BigUint64Array", "u8"),
)  # fmt: skip
"""The kinds of views of an ArrayBuffer, and numpy's names for their elements."""
DATA_VIEW, UINT8, CLAMPED = 0, 2, 3
MOST_COPIED = 1 << 26  # what views of a buffer may be copied to, beyond the size of the message


class CloneError(Exception):
    """A value that has no equal on the other side: a function, a lock, an instance of a class of yours, ..."""

    def __init__(self) -> None:
        super().__init__("An object could not be cloned.")


class _Undefined:
    """JavaScript's undefined. There is one."""

    def __new__(cls) -> _Undefined:
        return undefined

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "undefined"

    def __reduce__(self) -> str:
        return "undefined"  # copy and pickle find the one under this name


undefined: Any = object.__new__(_Undefined)
"""JavaScript's undefined, which is not None: None is null."""


class BigInt(int):
    """A bigint. It is an int, and stays a bigint on its way back even when it is small."""


class Uint8ClampedArray(bytes):
    """The bytes of a Uint8ClampedArray, in which a canvas keeps its colours."""


@dataclass(frozen=True)
class Date:
    """A Date that no datetime can be: an invalid one (NaN), or one outside of the years 1 to 9999."""

    milliseconds: float = math.nan


@dataclass(frozen=True)
class RegExp:
    """A regular expression of JavaScript."""

    source: str
    flags: str = ""

    def compile(self) -> re.Pattern[str]:
        """The same for Python, where the two languages agree; g, y, u and d have no equal and are left out.

        Raises:
            re.error: Python does not understand it.
        """
        known = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL}
        return re.compile(self.source, sum(known.get(flag, 0) for flag in self.flags))


@dataclass(frozen=True)
class Boxed:
    """What `new Number(1)`, `new String("s")`, `new Boolean(false)` and `Object(1n)` make: an object."""

    value: bool | float | str | BigInt


@dataclass
class DataView:
    """A window into an ArrayBuffer."""

    buffer: bytearray
    offset: int = 0
    length: int = 0


@dataclass
class SparseArray(Sequence):
    """An Array with holes, or with properties besides its elements."""

    length: int
    items: dict[int, Any] = field(default_factory=dict)
    properties: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        at = index + self.length if index < 0 else index
        if not 0 <= at < self.length:
            raise IndexError(f"index {index} of an array of {self.length}")
        return self.items.get(at, undefined)


class Error(Exception):
    """An Error of JavaScript. `str(error)` is its message."""

    def __init__(self, message: str | None = "", name: str = "Error", stack: str | None = None, cause: Any = undefined):
        super().__init__(message or "")
        self.message, self.name, self.stack, self.cause = message, name, stack, cause

    def __repr__(self) -> str:
        return f"{self.name}({self.message!r})"


def _same(value: Any) -> Any:
    """What is equal for two values exactly when JavaScript says that they are the same key (SameValueZero)."""
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, BigInt) or (isinstance(value, int) and abs(value) > SAFE):
        return BigInt, hex(value)  # as text: integers with the same hash are easily made, and fill a Map slowly
    if isinstance(value, (int, float)):
        return "NaN", float if value != value else value
    return id(value), object


class Map(MutableMapping):
    """A Map: keys of any kind, in order; numbers are the same when equal, objects when they are one object."""

    def __init__(self, pairs: Iterable[tuple[Any, Any]] = ()):
        self._pairs: dict[Any, tuple[Any, Any]] = {}
        for key, value in pairs:
            self[key] = value

    def __getitem__(self, key: Any) -> Any:
        try:
            return self._pairs[_same(key)][1]
        except KeyError:
            raise KeyError(key) from None

    def __setitem__(self, key: Any, value: Any) -> None:
        self._pairs[_same(key)] = key, value

    def __delitem__(self, key: Any) -> None:
        del self._pairs[_same(key)]

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self._pairs.values())

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, dict):
            return len(self) == len(other) and _equal(lambda: dict(self.items()) == other)
        return isinstance(other, Map) and list(self._pairs.values()) == list(other._pairs.values())

    __hash__ = None  # type: ignore[assignment]  # it can change, like a dict

    def __repr__(self) -> str:
        return f"Map({list(self._pairs.values())!r})"


class Set(MutableSet):
    """A Set: values of any kind, in order, told apart as the keys of a Map are."""

    def __init__(self, values: Iterable[Any] = ()):
        self._values = {_same(value): value for value in values}

    def __contains__(self, value: Any) -> bool:
        return _same(value) in self._values

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values.values())

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: Any) -> None:
        """Put a value in, at the end."""
        self._values.setdefault(_same(value), value)

    def discard(self, value: Any) -> None:
        """Take a value out, if it is there."""
        self._values.pop(_same(value), None)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (set, frozenset)):
            return len(self) == len(other) and _equal(lambda: set(self) == other)
        return isinstance(other, Set) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Set({list(self)!r})"


def _equal(compare: Callable[[], bool]) -> bool:
    try:
        return compare()
    except TypeError:  # something in it has no hash, so it is in no dict and no set of Python
        return False


def encode(value: Any, *, ports: Sequence[Any] = ()) -> bytes:
    """A value as bytes, for `decode` here or in JavaScript.

    Args:
        value: anything in this module's table, nested as you like. What occurs twice arrives as one object.
        ports: what is transferred with the message; where one of these occurs in the value, its index is written.

    Raises:
        CloneError: there is something in it that cannot be cloned.
    """
    encoder = _Encoder(ports)
    try:
        encoder.mention(value)
        for contents, container in encoder.pending:  # grows while it is walked
            contents(encoder, container)
    except CloneError:
        raise
    except Exception as why:  # a property of a subclass that raises, a dict that changes meanwhile, 4 GB in one piece
        raise CloneError from why
    return bytes(encoder.out)


def decode(data: bytes, *, ports: Sequence[Any] = ()) -> Any:
    """The value that `encode`, here or in JavaScript, has made these bytes of.

    Args:
        data: the bytes, from whomever.
        ports: what was transferred with the message, in order.

    Raises:
        ValueError: these bytes are no such message.
    """
    try:
        return _Decoder(data, ports).message()
    except (IndexError, struct.error):
        raise ValueError("this is no structured clone: it ends early, or names what it does not hold") from None
    except ValueError as why:
        raise ValueError(f"this is no structured clone: {why}") from None


class _Encoder:
    def __init__(self, ports: Sequence[Any]):
        self.out = bytearray(HEADER)
        self.numbers: dict[int, tuple[int, Any]] = {}  # of an id; the object is held, so that its id stays its own
        self.count = 0
        self.pending: list[tuple[Callable[[_Encoder, Any], None], Any]] = []
        self.ports = {id(port): index for index, port in enumerate(ports)}

    def mention(self, value: Any) -> None:
        if self.ports and id(value) in self.ports:
            self.out += struct.pack("<cI", b"p", self.ports[id(value)])
            return
        kind = type(value)
        write = _PRIMITIVES.get(kind)
        if write:
            write(self, value)
            return
        if id(value) in self.numbers:
            self.out += struct.pack("<cI", b"#", self.numbers[id(value)][0])
            return
        write = _OBJECTS.get(kind) or next((w for base, w in _OBJECTS.items() if isinstance(value, base)), None)
        if write:
            write(self, value)
            return
        write = next((w for base, w in _PRIMITIVES.items() if isinstance(value, base)), None)
        if write:
            write(self, value)
            return
        self.numpy(value)

    def numbered(self, value: Any) -> None:
        self.numbers[id(value)] = self.count, value
        self.count += 1

    # ------------------------------------------------------------------------------------------------- primitives

    def singleton(self, value: Any) -> None:
        self.out += b"_" if value is undefined else b"n" if value is None else b"t" if value else b"f"

    def integer(self, value: int) -> None:
        if -(2**31) <= value < 2**31:
            self.out += struct.pack("<ci", b"i", value)
        elif abs(value) <= SAFE:
            self.out += struct.pack("<cd", b"d", value)
        else:
            self.bigint(value)

    def real(self, value: float) -> None:
        self.out += struct.pack("<cd", b"d", value)

    def bigint(self, value: int) -> None:
        size = (value.bit_length() + 7) // 8
        self.out += struct.pack("<cBI", b"g", value < 0, size) + abs(value).to_bytes(size, "little")

    def string(self, value: str) -> None:
        try:
            tag, data = b"s", value.encode()
        except UnicodeEncodeError:
            tag, data = b"S", value.encode("utf-16-le", "surrogatepass")
        self.out += struct.pack("<cI", tag, len(data))
        self.out += data

    # ---------------------------------------------------------------------------------------------------- objects

    def date(self, value: datetime | Date) -> None:
        exact = value.milliseconds if isinstance(value, Date) else (value.astimezone(UTC) - EPOCH) // _MILLISECOND
        self.numbered(value)
        self.out += struct.pack("<cd", b"D", exact)

    def regexp(self, value: re.Pattern[Any] | RegExp) -> None:
        if isinstance(value, RegExp):
            source, flags = value.source, value.flags
        else:
            if not isinstance(value.pattern, str) or value.flags & (re.VERBOSE | re.LOCALE):
                raise CloneError
            source = value.pattern
            flags = "".join(c for c, flag in zip("ims", (re.I, re.M, re.S), strict=True) if value.flags & flag)
        self.numbered(value)
        self.out += b"R"
        self.string(source)
        self.string(flags)

    def boxed(self, value: Boxed) -> None:
        self.numbered(value)
        self.out += b"x"
        if type(value.value) not in _PRIMITIVES or value.value is None or value.value is undefined:
            raise CloneError
        _PRIMITIVES[type(value.value)](self, value.value)

    def buffer(self, value: Any) -> None:
        """An ArrayBuffer: a bytearray, or the bytes of something that does not share its memory with anything."""
        if id(value) in self.numbers:
            self.out += struct.pack("<cI", b"#", self.numbers[id(value)][0])
            return
        self.numbered(value)
        self.out += struct.pack("<cI", b"b", len(value))
        self.out += value

    def view(self, value: Any, kind: int, buffer: Any, offset: int, length: int) -> None:
        self.out += struct.pack("<cBII", b"v", kind, offset, length)
        self.buffer(buffer)
        self.numbered(value)

    def uint8(self, value: bytes) -> None:
        self.out += struct.pack("<cBIIcI", b"v", UINT8, 0, len(value), b"b", len(value))
        self.out += value
        self.count += 2  # a value, not an object, for Python: two equal ones are two arrays

    def clamped(self, value: Uint8ClampedArray) -> None:
        self.view(value, CLAMPED, memoryview(value), 0, len(value))

    def data_view(self, value: DataView) -> None:
        if not 0 <= value.offset <= value.offset + value.length <= len(value.buffer):
            raise CloneError
        self.view(value, DATA_VIEW, value.buffer, value.offset, value.length)

    def memory(self, value: memoryview | array.array) -> None:
        seen = memoryview(value)
        letter = seen.format.removeprefix("<")
        group = "i" if letter in "bhilq" else "u" if letter in "BHILQ" else "f" if letter in "efd" else ""
        if seen.ndim != 1:
            raise CloneError
        self.view(value, _kind(group, seen.itemsize), seen.tobytes(), 0, len(seen))

    def numpy(self, value: Any) -> None:
        numpy = sys.modules.get("numpy")  # not loaded: then this is nothing of numpy's
        if numpy and isinstance(value, (numpy.bool_, numpy.integer, numpy.floating)):
            self.mention(value.item())
            return
        if not numpy or not isinstance(value, numpy.ndarray) or value.ndim != 1 or value.dtype.kind not in "iuf":
            raise CloneError
        native = value.astype(value.dtype.newbyteorder("<"), copy=False)
        kind = _kind(native.dtype.kind, native.itemsize)
        base, offset = native.base, 0
        shared = isinstance(base, bytearray) and native.flags.c_contiguous  # as `decode` makes them
        if shared and base:
            offset = native.ctypes.data - numpy.frombuffer(base, "u1").ctypes.data
        if not shared or offset % native.itemsize:  # JavaScript has no view at an odd place
            base, offset = native.tobytes(), 0
        self.view(value, kind, base, offset, len(native))

    def container(self, value: Any, tag: bytes, contents: Callable[[_Encoder, Any], None]) -> None:
        self.numbered(value)
        self.out += tag
        self.pending.append((contents, value))

    def array(self, value: Any) -> None:
        self.container(value, b"a", _Encoder.values)

    def members(self, value: Any) -> None:
        self.container(value, b"e", _Encoder.values)

    def mapping(self, value: dict[Any, Any]) -> None:
        if all(isinstance(key, str) for key in value):
            self.container(value, b"o", _Encoder.properties)
        else:
            self.container(value, b"m", _Encoder.pairs)

    def map(self, value: Map) -> None:
        self.container(value, b"m", _Encoder.pairs)

    def sparse(self, value: SparseArray) -> None:
        self.container(value, b"A", _Encoder.items)

    def error(self, value: BaseException) -> None:
        name = value.name if isinstance(value, Error) else type(value).__name__
        self.container(value, struct.pack("<cB", b"E", NAMES.index(name) if name in NAMES else 0), _Encoder.parts)

    # --------------------------------------------------------------------------------------------------- contents

    def values(self, value: Any) -> None:
        values = list(value)
        self.out += struct.pack("<I", len(values))
        for each in values:
            self.mention(each)

    def pairs(self, value: Any) -> None:
        pairs = list(value.items())
        self.out += struct.pack("<I", len(pairs))
        for key, each in pairs:
            self.mention(key)
            self.mention(each)

    def properties(self, value: Any) -> None:
        pairs = list(value.items())
        self.out += struct.pack("<I", len(pairs))
        for key, each in pairs:
            self.string(key)
            self.mention(each)

    def items(self, value: SparseArray) -> None:
        items = sorted(value.items.items())
        if items and not 0 <= items[0][0] <= items[-1][0] < value.length:
            raise CloneError
        self.out += struct.pack("<II", value.length, len(items))
        for index, each in items:
            self.out += struct.pack("<I", index)
            self.mention(each)
        self.properties(value.properties)

    def parts(self, value: BaseException) -> None:
        if isinstance(value, Error):
            message, stack, cause = value.message, value.stack, value.cause
            if stack is None:  # made here: JavaScript's always have one
                stack = f"{value.name}: {message}" if message else value.name
        else:
            message = str(value) or None
            stack = "".join(traceback.format_exception(type(value), value, value.__traceback__, chain=False)).rstrip()
            cause = undefined if value.__cause__ is None else value.__cause__
        self.out.append((message is not None) + 2 * (stack is not None) + 4 * (cause is not undefined))
        for text in (message, stack):
            if text is not None:
                self.string(text)
        if cause is not undefined:
            self.mention(cause)


_MILLISECOND = timedelta(milliseconds=1)
_PRIMITIVES: dict[type, Callable[[_Encoder, Any], None]] = {
    str: _Encoder.string,
    BigInt: _Encoder.bigint,
    bool: _Encoder.singleton,
    int: _Encoder.integer,
    float: _Encoder.real,
    type(None): _Encoder.singleton,
    _Undefined: _Encoder.singleton,
}
_OBJECTS: dict[type, Callable[[_Encoder, Any], None]] = {
    dict: _Encoder.mapping,
    list: _Encoder.array,
    tuple: _Encoder.array,
    Uint8ClampedArray: _Encoder.clamped,
    bytes: _Encoder.uint8,
    bytearray: _Encoder.buffer,
    set: _Encoder.members,
    frozenset: _Encoder.members,
    Map: _Encoder.map,
    Set: _Encoder.members,
    SparseArray: _Encoder.sparse,
    datetime: _Encoder.date,
    Date: _Encoder.date,
    re.Pattern: _Encoder.regexp,
    RegExp: _Encoder.regexp,
    Boxed: _Encoder.boxed,
    DataView: _Encoder.data_view,
    memoryview: _Encoder.memory,
    array.array: _Encoder.memory,
    BaseException: _Encoder.error,
}


def _kind(group: str, size: int) -> int:
    """The kind of view whose elements are of this group (i, u or f) and so many bytes."""
    for kind, (_, element) in enumerate(TYPES):
        if element == f"{group}{size}" and kind != DATA_VIEW:
            return kind
    raise CloneError


class _Decoder:
    def __init__(self, data: bytes, ports: Sequence[Any]):
        self.data = memoryview(data)
        self.at = 0
        self.ports = ports
        self.objects: list[Any] = []
        self.pending: list[tuple[Callable[[_Decoder, Any], None], Any]] = []
        self.may_copy = len(data) + MOST_COPIED
        self.whole: dict[int, bytes] = {}

    def message(self) -> Any:
        if self.take(len(HEADER)) != HEADER:
            raise ValueError(f"it begins with {bytes(self.data[:2]).hex(' ')}, not with {HEADER.hex(' ')} (version 1)")
        value = self.value()
        for contents, container in self.pending:
            contents(self, container)
        if self.at != len(self.data):
            raise ValueError(f"it ends at byte {self.at}, but there are {len(self.data)}")
        return value

    def take(self, size: int) -> memoryview:
        start, end = self.at, self.at + size
        if end > len(self.data):
            raise ValueError(f"{size} bytes are announced at byte {start} of {len(self.data)}")
        self.at = end
        return self.data[start:end]

    def unpack(self, form: struct.Struct) -> Any:
        start = self.at
        self.at = start + form.size
        return form.unpack_from(self.data, start)[0]

    def times(self, least: int) -> range:
        """So many of what has at least so many bytes follow."""
        count = self.unpack(_U32)
        if count * least > len(self.data) - self.at:
            raise ValueError(f"{count} values are announced at byte {self.at} of {len(self.data)}")
        return range(count)

    def value(self) -> Any:
        tag = self.data[self.at]
        self.at += 1
        read = _READ.get(tag)
        if read is None:
            raise ValueError(f"there is no tag {bytes([tag])!r}, which is at byte {self.at - 1}")
        return read(self)

    def numbered(self, value: Any) -> Any:
        self.objects.append(value)
        return value

    def number(self) -> float:
        value: float = self.unpack(_F64)
        if value.is_integer() and abs(value) <= SAFE and (value or math.copysign(1, value) > 0):
            return int(value)
        return value

    def utf8(self) -> str:
        return str(self.take(self.unpack(_U32)), "utf-8")

    def utf16(self) -> str:
        return str(self.take(self.unpack(_U32)), "utf-16-le", "surrogatepass")

    def string(self) -> str:
        value = self.value() if self.data[self.at] in b"sS" else None
        if not isinstance(value, str):
            raise ValueError(f"a string is wanted at byte {self.at}")
        return value

    def bigint(self) -> BigInt:
        negative = self.unpack(_U8)
        magnitude = int.from_bytes(self.take(self.unpack(_U32)), "little")
        return BigInt(-magnitude if negative else magnitude)

    def reference(self) -> Any:
        return self.objects[self.unpack(_U32)]

    def port(self) -> Any:
        return self.ports[self.unpack(_U32)]

    def date(self) -> datetime | Date:
        exact = self.unpack(_F64)
        try:
            return self.numbered(EPOCH + timedelta(milliseconds=int(exact)))
        except (OverflowError, ValueError):
            return self.numbered(Date(exact))

    def regexp(self) -> RegExp:
        return self.numbered(RegExp(self.string(), self.string()))

    def boxed(self) -> Boxed:
        if self.data[self.at] not in b"tfidsSg":
            raise ValueError(f"a primitive is wanted at byte {self.at}")
        return self.numbered(Boxed(self.value()))

    def buffer(self) -> bytearray:
        return self.numbered(bytearray(self.take(self.unpack(_U32))))

    def view(self) -> Any:
        kind, offset, length = self.unpack(_U8), self.unpack(_U32), self.unpack(_U32)
        number = len(self.objects)
        if self.data[self.at] == ord("#"):
            number = _U32.unpack_from(self.data, self.at + 1)[0]
        buffer = self.value() if self.data[self.at] in b"b#" else None
        size = int(TYPES[kind][1][1])
        if not isinstance(buffer, bytearray) or offset % size or offset + length * size > len(buffer):
            raise ValueError(f"a {TYPES[kind][0]} is outside of its buffer, at byte {self.at}")
        if kind == DATA_VIEW:
            return self.numbered(DataView(buffer, offset, length))
        if kind in (UINT8, CLAMPED):
            copy = self.copy(buffer, number, offset, length)
            return self.numbered(copy if kind == UINT8 else Uint8ClampedArray(copy))
        import numpy

        return self.numbered(numpy.ndarray(length, f"<{TYPES[kind][1]}", buffer, offset))

    def copy(self, buffer: bytearray, number: int, offset: int, length: int) -> bytes:
        """A part of a buffer as bytes; a message of small views of one large buffer must not grow without limit."""
        if length == len(buffer) and number in self.whole:
            return self.whole[number]
        self.may_copy -= length
        if self.may_copy < 0:
            raise ValueError("its arrays are parts of one another and would take far more room than it has itself")
        copy = bytes(memoryview(buffer)[offset : offset + length])
        if length == len(buffer):
            self.whole[number] = copy
        return copy

    # ------------------------------------------------------------------------------------------------- containers

    def container(self, value: Any, contents: Callable[[_Decoder, Any], None]) -> Any:
        self.pending.append((contents, value))
        return self.numbered(value)

    def plain(self) -> dict[str, Any]:
        return self.container({}, _Decoder.properties)

    def array(self) -> list[Any]:
        return self.container([], _Decoder.values)

    def map(self) -> Map:
        return self.container(Map(), _Decoder.pairs)

    def members(self) -> Set:
        return self.container(Set(), _Decoder.additions)

    def sparse(self) -> SparseArray:
        return self.container(SparseArray(0), _Decoder.items)

    def error(self) -> Error:
        return self.container(Error(None, NAMES[self.unpack(_U8)]), _Decoder.parts)

    def properties(self, value: dict[str, Any]) -> None:
        for _ in self.times(6):
            key = self.string()
            value[key] = self.value()

    def values(self, value: list[Any]) -> None:
        value.extend([self.value() for _ in self.times(1)])

    def pairs(self, value: Map) -> None:
        for _ in self.times(2):
            key = self.value()
            value[key] = self.value()

    def additions(self, value: Set) -> None:
        for _ in self.times(1):
            value.add(self.value())

    def items(self, value: SparseArray) -> None:
        value.length = self.unpack(_U32)
        for _ in self.times(5):
            index = self.unpack(_U32)
            if index >= value.length:
                raise ValueError(f"element {index} of an array of {value.length}, at byte {self.at}")
            value.items[index] = self.value()
        self.properties(value.properties)

    def parts(self, value: Error) -> None:
        which = self.unpack(_U8)
        if which & 1:
            value.message = self.string()
            value.args = (value.message,)
        if which & 2:
            value.stack = self.string()
        if which & 4:
            value.cause = self.value()
            if isinstance(value.cause, BaseException):
                value.__cause__ = value.cause


_U8, _U32, _I32, _F64 = (struct.Struct(form) for form in ("<B", "<I", "<i", "<d"))
_READ: dict[int, Callable[[_Decoder], Any]] = {
    ord(tag): read
    for tag, read in {
        "_": lambda decoder: undefined,
        "n": lambda decoder: None,
        "t": lambda decoder: True,
        "f": lambda decoder: False,
        "i": lambda decoder: decoder.unpack(_I32),
        "d": _Decoder.number,
        "s": _Decoder.utf8,
        "S": _Decoder.utf16,
        "g": _Decoder.bigint,
        "#": _Decoder.reference,
        "p": _Decoder.port,
        "D": _Decoder.date,
        "R": _Decoder.regexp,
        "x": _Decoder.boxed,
        "b": _Decoder.buffer,
        "v": _Decoder.view,
        "o": _Decoder.plain,
        "a": _Decoder.array,
        "A": _Decoder.sparse,
        "m": _Decoder.map,
        "e": _Decoder.members,
        "E": _Decoder.error,
    }.items()
}
