"""Compiled functions that Python calls like its own builtins.

Calling a Numba dispatcher costs 100 ns or more, a ctypes function four times that: more than the work itself. A Numba
`cfunc` has a plain C address, and a PyMethodDef filled with ctypes turns an address into a real builtin
(PyCFunction_NewEx). Inside, the compiled code calls CPython's documented C API; LLVM finds those symbols by name, so
that nothing compiled has an address baked in and all of it can be cached on disk.

A builtin's `self` is an integer: the address of its private state, a small array of 64-bit words. Whatever the
builtin uses (the state, the shared mapping) hangs on its module slot and lives as long as it can be called.

Rules inside: check every result, own every reference that is returned, let no exception leave the compiled code
except one that the C API itself has set (then return 0).
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, types

from labkit.lockfree.atomics import load_relaxed, on_stack

SOURCES = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
"""Numba keys its cache by a function's own source only, so that an edit of what it calls would leave stale code
behind. A cell of a closure is part of the key: cached functions are made by a factory that takes this hash of the
whole folder, and mention it."""

WORD = types.int64
BUILTIN = WORD(WORD, WORD)  # PyObject *f(PyObject *self, PyObject *argument)

PyLong_AsVoidPtr = types.ExternalFunction("PyLong_AsVoidPtr", WORD(WORD))
PyLong_AsLong = types.ExternalFunction("PyLong_AsLong", WORD(WORD))
PyLong_FromLongLong = types.ExternalFunction("PyLong_FromLongLong", WORD(WORD))
PyBytes_FromStringAndSize = types.ExternalFunction("PyBytes_FromStringAndSize", WORD(WORD, WORD))
PyBytes_AsString = types.ExternalFunction("PyBytes_AsString", WORD(WORD))
PyBytes_Size = types.ExternalFunction("PyBytes_Size", WORD(WORD))
PyObject_GetBuffer = types.ExternalFunction("PyObject_GetBuffer", types.int32(WORD, WORD, types.int32))
PyBuffer_Release = types.ExternalFunction("PyBuffer_Release", types.void(WORD))
PyEval_SaveThread = types.ExternalFunction("PyEval_SaveThread", WORD())
PyEval_RestoreThread = types.ExternalFunction("PyEval_RestoreThread", types.void(WORD))
Py_IncRef = types.ExternalFunction("Py_IncRef", types.void(WORD))
Py_DecRef = types.ExternalFunction("Py_DecRef", types.void(WORD))
PyBytes_AsStringAndSize = types.ExternalFunction("PyBytes_AsStringAndSize", types.int32(WORD, WORD, WORD))
PyObject_Vectorcall = types.ExternalFunction("PyObject_Vectorcall", WORD(WORD, WORD, WORD, WORD))
PySequence_Size = types.ExternalFunction("PySequence_Size", WORD(WORD))
PySequence_GetItem = types.ExternalFunction("PySequence_GetItem", WORD(WORD, WORD))
PyList_New = types.ExternalFunction("PyList_New", WORD(WORD))
PyList_Size = types.ExternalFunction("PyList_Size", WORD(WORD))
PyList_GetItem = types.ExternalFunction("PyList_GetItem", WORD(WORD, WORD))
PyList_SetItem = types.ExternalFunction("PyList_SetItem", types.int32(WORD, WORD, WORD))
PyList_SetSlice = types.ExternalFunction("PyList_SetSlice", types.int32(WORD, WORD, WORD, WORD))
PyList_Append = types.ExternalFunction("PyList_Append", types.int32(WORD, WORD))
PyBool_FromLong = types.ExternalFunction("PyBool_FromLong", WORD(WORD))
PyTuple_Size = types.ExternalFunction("PyTuple_Size", WORD(WORD))
PyTuple_GetItem = types.ExternalFunction("PyTuple_GetItem", WORD(WORD, WORD))
PyErr_Clear = types.ExternalFunction("PyErr_Clear", types.void())
PyErr_Occurred = types.ExternalFunction("PyErr_Occurred", WORD())
WRITABLE = 1  # PyBUF_WRITABLE

# A builtin's private state: 64-bit words, by byte offset. From OWN on, each builtin has its own.
RING, RING_BYTES = 0, 8  # address of the ring, capacity of its data
NONE = 16  # address of None, to return it
MOST = 24  # bytes in the largest message
BLOCK, TIMEOUT = 32, 40  # addresses of the words "block" and "timeout", as a call names its arguments
OWN = 48
STATE_WORDS = 50

# A Py_buffer (80 bytes) lives on the stack, never in the state: PyObject_GetBuffer may run Python code (PEP 688), which
# may call the same builtin again, from this thread or another.
BUFFER_START, BUFFER_SIZE = 0, 16  # its fields buf and len, stable ABI since Python 3.11

METH_NOARGS, METH_O = 0x0004, 0x0008
METH_ANY = 0x0080 | 0x0002  # METH_FASTCALL | METH_KEYWORDS
FASTCALL = WORD(WORD, WORD, WORD, WORD)  # PyObject *f(PyObject *self, PyObject **args, Py_ssize_t n, PyObject *kw)

_python = ctypes.PyDLL(None)
_python.PyCFunction_NewEx.restype = ctypes.py_object
_python.PyCFunction_NewEx.argtypes = [ctypes.c_void_p, ctypes.py_object, ctypes.py_object]


class _MethodDef(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


class _Module(str):
    """A builtin's `__module__`, which it keeps, and with it what it uses."""

    uses: Any


class Entry:
    """A compiled function, of which a builtin is made for each state.

    A docstring that begins "name(arguments): " is a signature, for help() and inspect.signature.
    """

    def __init__(self, function: Any, flags: int):
        self._compiled = function  # owns the machine code
        name, doc = function.__name__, function.__wrapped__.__doc__ or ""
        if doc.startswith(f"{name}("):
            call, _, text = doc.partition(": ")
            doc = f"{call}\n--\n\n{text[:1].upper()}{text[1:]}".replace("(", "($self, ", 1).replace(", )", ")", 1)
        self._definition = _MethodDef(name.encode(), function.address, flags, doc.encode())
        self._module = function.__wrapped__.__module__

    def builtin(self, state: np.ndarray, keep: Any, itself: int | None = None) -> Callable[..., Any]:
        """A callable on this state. `keep` lives as long as the callable does. `itself` is the state's address."""
        address = int(state.ctypes.data) if itself is None else itself
        module = _Module(self._module)  # a word, since inspect looks for the module of this name
        module.uses = state, keep, self
        made: Callable[..., Any] = _python.PyCFunction_NewEx(ctypes.addressof(self._definition), address, module)
        return made


def callables(functions: dict[str, Any], without_gil: Collection[str] = ()) -> dict[str, Callable[..., int]]:
    """Compiled functions for calling from Python: integers in and out.

    They go through ctypes: half a microsecond, and cached on disk, where a dispatcher would compile in each process.
    They keep the GIL, but for those named: to get it back in a busy process takes milliseconds
    (sys.getswitchinterval), longer than they do.
    """
    _keep.extend(functions.values())
    made: dict[str, Callable[..., int]] = {}
    for name, function in functions.items():
        prototype = ctypes.CFUNCTYPE if name in without_gil else ctypes.PYFUNCTYPE
        made[name] = prototype(function.ctypes.restype, *function.ctypes.argtypes)(function.address)
    return made


_keep: list[Any] = []  # the owners of the machine code
_words = sys.intern("block"), sys.intern("timeout")


def new_state(ring: int, capacity: int, most: int) -> np.ndarray:
    """The private state of a builtin that works on the ring at an address."""
    state = np.zeros(STATE_WORDS, np.int64)
    state[[RING // 8, RING_BYTES // 8, NONE // 8, MOST // 8]] = ring, capacity, id(None), most
    state[[BLOCK // 8, TIMEOUT // 8]] = [id(word) for word in _words]
    return state


@njit
def none(state):
    """A new reference to None, which is mortal before Python 3.12."""
    address = load_relaxed(state + NONE)
    Py_IncRef(address)
    return address


# --- what the builtins of the queues have in common ---------------------------------------------------------
#

REFUSED, APART, FULL, CORRUPT, SENT = range(5)
"""What a sender returns. REFUSED: empty, too large, of the wrong size; APART: we have not the role yet. A receiver
returns what came, None when there is nothing (-FULL), APART or CORRUPT."""


# What can be done at once does not wait, whatever a call says of waiting, so that its arguments are not looked at.


@njit(forceinline=True)
def at_most_timeout(state, count, names):
    """Whether a call gives, in so many arguments and by name, nothing or a timeout."""
    if names == 0:
        return 0 <= count <= 1
    return count == 0 and PyTuple_Size(names) == 1 and PyTuple_GetItem(names, 0) == load_relaxed(state + TIMEOUT)


@njit(forceinline=True)
def at_most_block_and_timeout(state, count, names):
    """The same of `block` and `timeout`, in this order."""
    return 0 <= count <= 2 if names == 0 else _names_block_or_timeout(state, count, names)


@njit
def _names_block_or_timeout(state, count, names):
    number, block, timeout = PyTuple_Size(names), load_relaxed(state + BLOCK), load_relaxed(state + TIMEOUT)
    if number == 1:
        first = PyTuple_GetItem(names, 0)
        return (first == timeout and 0 <= count <= 1) or (first == block and count == 0)
    if number != 2 or count != 0:
        return False
    first, second = PyTuple_GetItem(names, 0), PyTuple_GetItem(names, 1)
    return (first == block and second == timeout) or (first == timeout and second == block)


@njit
def given_bytes(arguments, count, buffer):
    """Whether a builtin was called with a bytes object first; its address and size go to `buffer`."""
    if count < 1:
        return False
    if PyBytes_AsStringAndSize(load_relaxed(arguments), buffer, buffer + 8) != 0:
        PyErr_Clear()
        return False
    return True


@njit
def answer(state, message):
    """What a builtin returns of what `take` has: the message, None, or a number that says why not."""
    if message >= 0:
        return message
    return none(state) if message == -FULL else PyLong_FromLongLong(-message)


def of_object(put: Any) -> Any:
    """`put_one`, a compiled function of a queue that sends bytes like this."""

    @njit
    def put_one(state, message):
        """Send the bytes of one object: SENT or why not; -1 with an exception set."""
        buffer = on_stack()
        if PyBytes_AsStringAndSize(message, buffer, buffer + 8) == 0:
            return put(state, load_relaxed(buffer), load_relaxed(buffer + 8))
        PyErr_Clear()
        if PyObject_GetBuffer(message, buffer, 0) != 0:
            return -1
        sent = put(state, load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE))
        PyBuffer_Release(buffer)
        return sent

    return put_one
