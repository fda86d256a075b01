"""What a pickle says before it is put together: whether objects that were pickled as one list may be handed out singly.

Objects that are pickled together share: what pickle meets a second time it does not write again, but refers to. A
text may be shared by all of them, since nobody can change it. A list or dictionary may not: who gets one of two objects
would change the other. So whoever pickles several objects at once asks here whether a container is found in two places.

Read opcode by opcode, as pickle.py and pickletools.py of Python describe protocol 5. Whatever is not plain data
(a class, a call, a persistent id, a buffer out of band) is answered with no.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from labkit.lockfree.atomics import pointer

MOST_SHARED = 1 << 12
"""Of so many things that pickle could refer to it is known whether they are containers. Of more: no."""

MEMOIZE, BINGET = 0x94, 0x68
"""The two opcodes that are most frequent."""
PLAIN, CONTAINER, COUNTED, GET, STOP = range(1, 6)
"""What another opcode does to what we know. COUNTED: its argument says how many bytes follow that."""

_OPCODES = (
    (PLAIN, 0, b"(aesu\x90N\x88\x89)"),  # marks and what fills containers; None, True, False, ()
    (PLAIN, 1, b"K\x80"),  # whole numbers, a float, PROTO and FRAME
    (PLAIN, 2, b"M"),
    (PLAIN, 4, b"J"),
    (PLAIN, 8, b"G\x95"),
    (COUNTED, 1, b"\x8a\x8cC"),  # whole numbers, texts, bytes
    (COUNTED, 4, b"\x8bXB"),
    (COUNTED, 8, b"\x8d\x8e"),
    (CONTAINER, 0, b"]}\x8f\x85\x86\x87t\x91"),  # lists, dictionaries, sets, tuples
    (GET, 4, b"j"),
    (STOP, 0, b"."),
)
"""What it does, bytes of its argument, the opcodes."""
_WHAT = np.zeros(256, np.int64)
for _kind, _size, _codes in _OPCODES:
    for _code in _codes:
        _WHAT[_code] = _size << 8 | _kind


@njit
def _number(pickled, at, size):
    """A little-endian number; large ones are cut."""
    number = np.int64(0)
    for byte in range(min(size, 7)):
        number |= np.int64(pickled[at + byte]) << np.int64(8 * byte)
    return number


@njit
def is_of_trees(start, size, room):
    """Whether a pickle holds nothing but plain data, of which no container is found in two places.

    Args:
        start, size: of the pickle.
        room: address of MOST_SHARED bytes to work in.
    """
    pickled, is_container = carray(pointer(start), (size,), np.uint8), carray(pointer(room), (MOST_SHARED,), np.uint8)
    at, memoized, was_container = np.int64(0), np.int64(0), False
    while at < size:
        code = pickled[at]
        if code == MEMOIZE:
            if memoized == MOST_SHARED:
                return False
            is_container[memoized] = was_container
            memoized += 1
            at += 1
            continue
        if code == BINGET:
            if at + 1 >= size or pickled[at + 1] >= memoized or is_container[pickled[at + 1]]:
                return False
            was_container = False
            at += 2
            continue
        what = _WHAT[code]
        kind, wide = what & 255, what >> 8
        was_container = kind == CONTAINER
        at += 1 + wide
        if kind in (PLAIN, CONTAINER):
            continue
        if at > size or kind == 0:
            return False
        if kind == STOP:
            return at == size
        number = np.int64(pickled[at - 1]) if wide == 1 else _number(pickled, at - wide, wide)
        if kind == COUNTED:
            at += number
        elif number >= memoized or is_container[number]:  # LONG_BINGET
            return False
    return False
