"""Queues of items in the reader's own @njit functions, with the names that they have in Python.

    @njit
    def total(q):
        sum_ = 0.0
        for _ in range(1000):
            sum_ += q.receive()
        return sum_

    total(Broadcast(1024, dtype=np.float64))

A queue is handed over as an argument. Its methods work on the same private state as the builtins do, so that Python and
compiled code can take turns. They keep the GIL, or go without it when the function is compiled with nogil=True, but
for while they sleep. Ctrl-C is noticed ten times a second by whoever sleeps. What is different:

    q.try_receive()     returns (True, item) or (False, an item of zeros)

How a class plugs in: `teach(Class, Operations(...))`; its objects have `_at`, the address of the private state,
`closed`, and `_item`, the dtype, or None for a queue of bytes, which stays in Python.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import (
    NativeValue,
    intrinsic,
    make_attribute_wrapper,
    models,
    overload,
    overload_method,
    register_model,
    typeof_impl,
    unbox,
)

from labkit.channels.base import DEFAULT_TIMEOUT, Closed
from labkit.lockfree import bells
from labkit.lockfree.atomics import load_relaxed, on_stack, pause
from labkit.lockfree.entry import PyEval_RestoreThread, PyEval_SaveThread

WORD = types.int64
PyGILState_Check = types.ExternalFunction("PyGILState_Check", types.int32())
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, WORD))
CLOCK_MONOTONIC = 1
SCALARS = (types.Number, types.Boolean, types.NPDatetime, types.NPTimedelta)
"""Items that need no memory from the heap."""
INLINE = {"forceinline": True}
"""For what is called for each item: a call saves registers on the stack, and all that a processor stores goes through
one queue of some 60 stores, in order, at whose head is what it stores for the other processor, and waits for a cache
line. The fewer stores an item takes, the more items fit in that queue. Therefore, too, who has to wait gets a place on
the stack of its own: then the place of who need not wait is a register."""
APART = {"forceinline": False}
"""For what is called seldom: what INLINE calls would be inlined, too."""


class Operations(NamedTuple):
    """What a queue can do, compiled functions of the address of its private state."""

    send: Any
    """(state, source, count): how many items were sent, 0 when there is no room, or trouble, a negative number."""
    receive: Any
    """(state, to, most): how many items were received, 0 when there are none, or trouble."""
    trouble: Any
    """(state, number): raise what this trouble means. When it returns, what was tried is tried again."""
    can_receive: Any
    """(state): a guess whether it is worth while to try. It may wait a moment first."""
    can_send: Any
    items_bell: Any
    """(state): address of the bell that rings when something was sent."""
    room_bell: Any
    senders_gone: Any
    """(state): proof that there were senders and none is left."""
    receivers_gone: Any
    spins: Any
    """(state): how often to look before sleeping is cheaper."""


class QueueType(types.Type):
    """Numba's type of a queue: its class and its dtype."""

    def __init__(self, kind: str, item: np.dtype):
        self.item = item
        super().__init__(f"{kind}({item!r})")


@register_model(QueueType)
class _Model(models.StructModel):
    def __init__(self, manager: Any, fe_type: QueueType):
        super().__init__(manager, fe_type, [("state", WORD)])


make_attribute_wrapper(QueueType, "state", "_state")


@njit
def now():
    """Seconds on the monotonic clock."""
    time = on_stack()
    _clock_gettime(CLOCK_MONOTONIC, time)
    return load_relaxed(time) + load_relaxed(time + 8) * 1e-9


def _seconds(timeout):
    """When a timeout that begins now ends."""
    raise NotImplementedError


@overload(_seconds)
def _(timeout):
    if timeout in (types.none, None) or isinstance(timeout, types.NoneType):
        return lambda timeout: math.inf

    def seconds(timeout):
        if not timeout >= 0:
            raise ValueError("timeout must be at least 0 seconds, or None to wait for ever")
        return now() + timeout

    return seconds


def _never_waits(timeout):
    raise NotImplementedError


@overload(_never_waits)
def _(timeout):
    if isinstance(timeout, types.NoneType):
        return lambda timeout: False
    return lambda timeout: timeout == 0


@intrinsic
def check_signals(typingctx):
    """Let Python run the handlers of signals that came, and leave the function with what one of them raises."""

    def code(context, builder, signature, arguments):
        integer = ir.IntType(32)
        ask = cgutils.get_or_insert_function(builder.module, ir.FunctionType(integer, []), "PyErr_CheckSignals")
        failed = builder.icmp_signed("!=", builder.call(ask, []), ir.Constant(integer, 0))
        with builder.if_then(failed, likely=False):
            context.call_conv.return_exc(builder)
        return context.get_dummy_value()

    return types.void(), code


@njit
def sleep(bell, ticket, left):
    """Sleep at a bell, without the GIL when it is ours. It raises what a signal's handler raises."""
    nanoseconds = WORD(min(max(left, 0.0), 1.0) * 1e9)
    if PyGILState_Check() == 0:
        bells.sleep(bell, ticket, nanoseconds)
        return
    thread = PyEval_SaveThread()
    bells.sleep(bell, ticket, nanoseconds)
    PyEval_RestoreThread(thread)
    check_signals()


def _waiting(act: Any, can: Any, bell_of: Any, gone: Any, ended: str, late: str, ops: Operations) -> Any:
    """Three compiled functions that send, or receive.

    One does it if it can; one waits until it can, after `act` has just returned `done`; one is both together.
    """
    trouble, spins = ops.trouble, ops.spins

    @njit(**APART)
    def again(state, address, count):
        done = act(state, address, count)
        while done < 0:
            trouble(state, done)
            done = act(state, address, count)
        return done

    @njit(**APART)
    def waiting(state, address, count, timeout, done):
        if done < 0:
            trouble(state, done)
            done = again(state, address, count)
            if done > 0:
                return done
        bell, end, begun = bell_of(state), 0.0, False
        while True:
            ticket = WORD(0)
            if _never_waits(timeout):
                over = gone(state)
            else:
                if not begun:
                    end, begun = _seconds(timeout), True
                for _ in range(spins(state)):
                    if can(state):
                        break
                    pause()
                ticket = bells.seen(bell)
                done = again(state, address, count)
                if done > 0:
                    return done
                bells.arm(bell, bells.SLEEPS)
                over = gone(state)
            done = again(state, address, count)  # also after the others have gone, for what they have left
            if done > 0:
                return done
            if over:
                raise Closed(ended)
            left = end - now() if begun else 0.0
            if left <= 0:
                raise TimeoutError(late)
            sleep(bell, ticket, left)
            done = again(state, address, count)
            if done > 0:
                return done

    @njit(forceinline=True)
    def at_once_or_waiting(state, address, count, timeout):
        done = act(state, address, count)
        return done if done > 0 else waiting(state, address, count, timeout, done)

    return again, waiting, at_once_or_waiting


def teach(queue: type, ops: Operations | Callable[[np.dtype], Operations]) -> None:
    """Make objects of this class usable in @njit functions.

    Args:
        ops: or a function that makes them for items of one dtype, whose size they may make use of.
    """
    name = queue.__name__

    def _at_open(self: Any) -> Any:
        if self.closed:
            raise ValueError(f"this {name} is closed")
        return self._at

    queue._at_open = property(_at_open)  # type: ignore[attr-defined]

    class Type(QueueType):
        """Numba's type of one class."""

    register_model(Type)(_Model)
    make_attribute_wrapper(Type, "state", "_state")

    @functools.cache
    def operations(item: np.dtype) -> Operations:
        return ops(item) if callable(ops) else ops

    @functools.cache
    def receiving(item: np.dtype) -> Any:
        """`try_receive` and `receive`."""
        of = operations(item)
        ended = "there was a sender, none is left, and everything is received"
        late = "nothing came within the timeout"
        return _waiting(of.receive, of.can_receive, of.items_bell, of.senders_gone, ended, late, of)

    @functools.cache
    def sending(item: np.dtype) -> Any:
        """`try_send` and `send`."""
        of = operations(item)
        ended, late = "it is full, and there is no receiver any more", "it stayed full for the timeout"
        return _waiting(of.send, of.can_send, of.room_bell, of.receivers_gone, ended, late, of)

    @typeof_impl.register(queue)
    def _(value: Any, c: Any) -> Any:
        if value._item is None:
            raise TypeError(f"this {name} has messages of any length, for Python; in @njit use one with a dtype")
        return Type(name, value._item)

    @unbox(Type)
    def _(typ: Any, value: Any, c: Any) -> Any:
        is_error = cgutils.alloca_once_value(c.builder, cgutils.true_bit)
        made = cgutils.create_struct_proxy(typ)(c.context, c.builder)
        at = c.pyapi.object_getattr_string(value, "_at_open")
        with c.builder.if_then(cgutils.is_not_null(c.builder, at)):
            word = c.unbox(WORD, at)
            made.state = word.value
            c.builder.store(word.is_error, is_error)
            c.pyapi.decref(at)
        return NativeValue(made._getvalue(), is_error=c.builder.load(is_error))

    @overload_method(Type, "try_send")
    def _(q, item):
        address_of, (try_send, *_) = _sender(q.item), sending(q.item)

        def method(q, item):
            given = address_of(item)
            return try_send(q._state, given[0], 1) > 0

        return method

    @overload_method(Type, "send", jit_options=INLINE)
    def _(q, item, timeout=DEFAULT_TIMEOUT):
        address_of, (_, waits, _), at_once = _sender(q.item), sending(q.item), operations(q.item).send

        def method(q, item, timeout=DEFAULT_TIMEOUT):
            given = address_of(item)
            done = at_once(q._state, given[0], 1)
            if done <= 0:
                given = address_of(item)  # see INLINE
                waits(q._state, given[0], 1, timeout, done)

        return method

    @overload_method(Type, "send_many")
    def _(q, items, timeout=DEFAULT_TIMEOUT):
        address_of, size, (*_, send) = _array_sender(q.item, 1), q.item.itemsize, sending(q.item)

        def method(q, items, timeout=DEFAULT_TIMEOUT):
            array, sent = address_of(items), 0
            while sent < len(array):
                sent += send(q._state, array.ctypes.data + sent * size, len(array) - sent, timeout)

        return method

    @overload_method(Type, "try_receive")
    def _(q):
        (room, value), (try_receive, *_) = _receiver(q.item), receiving(q.item)

        def method(q):
            place = room()
            came = try_receive(q._state, place[0], 1) > 0
            return came, value(place)

        return method

    @overload_method(Type, "receive", jit_options=INLINE)
    def _(q, timeout=DEFAULT_TIMEOUT):
        (room, value), (_, waits, _), at_once = _receiver(q.item), receiving(q.item), operations(q.item).receive

        def method(q, timeout=DEFAULT_TIMEOUT):
            place = room()
            done = at_once(q._state, place[0], 1)
            if done > 0:
                return value(place)
            place = room()  # see INLINE
            waits(q._state, place[0], 1, timeout, done)
            return value(place)

        return method

    @overload_method(Type, "receive_many")
    def _(q, most=1024, timeout=DEFAULT_TIMEOUT):
        base, shape, (*_, receive) = numba.from_dtype(q.item.base), q.item.shape, receiving(q.item)

        def method(q, most=1024, timeout=DEFAULT_TIMEOUT):
            if most < 1:
                raise ValueError("receive at least 1 item")
            room = np.empty((most, *shape), base)
            return room[: receive(q._state, room.ctypes.data, most, timeout)]

        return method

    @overload_method(Type, "receive_into", jit_options=INLINE)
    def _(q, items, timeout=DEFAULT_TIMEOUT):
        address_of, (*_, receive) = _place_for(q.item), receiving(q.item)

        def method(q, items, timeout=DEFAULT_TIMEOUT):
            return receive(q._state, address_of(items), len(items), timeout)

        return method


def _place_for(item: np.dtype) -> Any:
    """A function that returns the address of an array that items are to be received into, or raises ValueError."""
    base, shape = numba.from_dtype(item.base), item.shape
    wrong = f"items have dtype {item.base} and shape {shape}, and go into a contiguous array"

    def place(given):
        raise NotImplementedError

    @overload(place)
    def _(given):
        fits = isinstance(given, types.Array) and given.dtype == base and given.ndim == 1 + len(shape)
        if not (fits and given.layout == "C" and given.mutable):
            raise numba.TypingError(f"{wrong}; {given} was given")

        def address(given):
            if given.shape[1:] != shape or given.size == 0:
                raise ValueError(wrong)
            return given.ctypes.data

        return address

    @njit
    def address_of(given):
        return place(given)

    return address_of


def _sender(item: np.dtype) -> Any:
    """A function that returns the address of an item given, and what keeps it alive."""
    if item.shape:
        many = _array_sender(item, 0)

        @njit
        def address_of_array(given):
            array = many(given)
            return array.ctypes.data, array

        return address_of_array
    base = numba.from_dtype(item)
    if isinstance(base, SCALARS):
        return _spiller(base)

    @njit
    def address_of_large(given):
        array = np.empty(1, base)
        array[0] = given
        return array.ctypes.data, array

    return address_of_large


def _array_sender(item: np.dtype, lead: int) -> Any:
    """A function that returns an array of items, whole in memory, or raises ValueError."""
    base, shape = numba.from_dtype(item.base), item.shape
    wrong = f"items have dtype {item.base} and shape {shape}"

    def contiguous(given):
        raise NotImplementedError

    @overload(contiguous)
    def _(given):
        if not isinstance(given, types.Array) or given.dtype != base or given.ndim != lead + len(shape):
            raise numba.TypingError(f"{wrong}; an array of {given} was given")

        def check(given):
            if given.shape[lead:] != shape:
                raise ValueError(wrong)
            return np.ascontiguousarray(given)

        def check_nothing(given):
            return np.ascontiguousarray(given)

        return check if shape else check_nothing

    @njit
    def array_of(given):
        return contiguous(given)

    return array_of


def _receiver(item: np.dtype) -> Any:
    """Two functions: one makes room for an item, the other makes a value of it."""
    base, shape = numba.from_dtype(item.base), item.shape
    if shape:

        @njit
        def array_room():
            array = np.zeros(shape, base)
            return array.ctypes.data, array

        @njit
        def array_value(place):
            return place[1]

        return array_room, array_value
    if isinstance(base, SCALARS):
        return _stack_room(base)

    @njit
    def heap_room():
        array = np.zeros(1, base)
        return array.ctypes.data, array

    @njit
    def heap_value(place):
        return place[1][0]

    return heap_room, heap_value


# Intrinsics, so that what they put on the stack lives as long as the function that uses them.


def _spiller(base: Any) -> Any:
    @intrinsic
    def address_on_stack(typingctx, given):
        """Address of a number on the stack, twice, converted to the items' type."""
        if typingctx.can_convert(given, base) is None:
            raise numba.TypingError(f"items are {base}; {given} was given")

        def code(context, builder, signature, arguments):
            value = context.cast(builder, arguments[0], signature.args[0], base)
            place = cgutils.alloca_once(builder, context.get_data_type(base))
            builder.store(context.get_value_as_data(builder, base, value), place)
            address = builder.ptrtoint(place, ir.IntType(64))
            return context.make_tuple(builder, signature.return_type, (address, address))

        return types.UniTuple(WORD, 2)(given), code

    return address_on_stack


def _stack_room(base: Any) -> Any:
    @intrinsic
    def stack_room(typingctx):
        def code(context, builder, signature, arguments):
            place = cgutils.alloca_once(builder, context.get_data_type(base), zfill=True)
            address = builder.ptrtoint(place, ir.IntType(64))
            return context.make_tuple(builder, signature.return_type, (address, address))

        return types.UniTuple(WORD, 2)(), code

    @intrinsic
    def stack_value(typingctx, place):
        def code(context, builder, signature, arguments):
            address = builder.extract_value(arguments[0], 0)
            pointer = builder.inttoptr(address, context.get_data_type(base).as_pointer())
            return context.data_model_manager[base].load_from_data_pointer(builder, pointer)

        return base(place), code

    return stack_room, stack_value
