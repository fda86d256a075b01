"""Items that are numbers, in every queue: as they are, also in a process to which the queue travelled."""

from __future__ import annotations

import contextlib
import pickle

import numpy as np
import pytest

from labkit.lockfree import Broadcast, Mpmc, Spsc
from labkit.lockfree.face import is_plain, number_of

NUMBERS = "?bBhHiIlLqQefdgFDG"  # each of NumPy's


@pytest.mark.parametrize("code", NUMBERS)
def test_a_number_is_known_by_its_dtype_also_when_that_has_travelled(code):
    travelled = pickle.loads(pickle.dumps(np.dtype(code)))
    number = number_of(travelled)
    assert number is np.dtype(np.dtype(code).str)
    assert is_plain(np.zeros(3, number), number)


@pytest.mark.parametrize("dtype", [">i8", "S3", "M8[s]", [("x", "f8")], (np.int64, 2)])
def test_what_is_not_a_number_is_none(dtype):
    assert number_of(np.dtype(dtype)) is None
    assert number_of(None) is None


def test_arrays_are_plain_only_as_they_lie_in_memory():
    number, array = np.dtype(np.int64), np.arange(12)
    assert is_plain(array, number) and not is_plain(array, None)
    assert not any(is_plain(other, number) for other in (array[::2], array.reshape(3, 4), array[:0], list(array)))
    assert not is_plain(array.astype(np.int32), number)


@pytest.mark.parametrize("code", NUMBERS)
@pytest.mark.parametrize("kind", [Spsc, Mpmc, Broadcast])
def test_numbers_of_every_type_go_through_every_queue(kind, code):
    some = np.arange(1, 6).astype(code)
    with kind(16, dtype=code) as q:
        with contextlib.suppress(TimeoutError):
            q.receive(0)  # a reader of a broadcast begins to listen
        q.send(some[0])
        q.send_many(some[1:])
        q.send_many(some[::2])
        came = [q.receive()]
        while len(came) < 8:
            came.extend(q.receive_many())
    np.testing.assert_array_equal(np.array(came, code), np.concatenate([some, some[::2]]))
