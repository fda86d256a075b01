"""`send` and `receive` of the lock-free queues, which are builtins, are called like any other function."""

from __future__ import annotations

import ctypes

import pytest

from labkit import Queue
from labkit.lockfree import Mpmc, Spsc

pytestmark = pytest.mark.every_python

LATER = {"tim" + "eout": 5}  # a word that is not the one of a call

CALLS = [
    lambda q: (q.send(b"m", 5), q.receive(5)),
    lambda q: (q.send(b"m", timeout=5), q.receive(timeout=5)),
    lambda q: (q.send(b"m", None), q.receive(None)),
    lambda q: (q.send(b"m", timeout=None), q.receive(timeout=None)),
    lambda q: (q.send(b"m", 0), q.receive(0)),
    lambda q: (q.send(b"m", **LATER), q.receive(**LATER)),
    lambda q: (q.send(message=b"m"), q.receive()),
    lambda q: (q.send(message=b"m", timeout=5), q.receive()),
    lambda q: (q.send(bytearray(b"m"), timeout=5), q.receive()),
    lambda q: (q.try_send(b"m") or None, q.try_receive()),
    lambda q: (q.try_send(message=b"m") or None, q.try_receive()),
]
NO_CALLS = [
    lambda q: q.send(),
    lambda q: q.send(b"m", 5, 6),
    lambda q: q.send(b"m", 5, timeout=5),
    lambda q: q.send(b"m", wait=5),
    lambda q: q.send(b"m", message=b"m"),
    lambda q: q.send(b"m", timeout=5, wait=5),
    lambda q: q.try_send(b"m", 5),
    lambda q: q.try_send(b"m", timeout=5),
    lambda q: q.receive(5, 6),
    lambda q: q.receive(5, timeout=5),
    lambda q: q.receive(wait=5),
    lambda q: q.try_receive(5),
    lambda q: q.try_receive(timeout=5),
]


@pytest.fixture(params=[Spsc, Mpmc])
def q(request):
    with request.param(4096) as made:
        yield made


@pytest.mark.parametrize("call", CALLS)
def test_a_message_comes_however_they_are_called(q, call):
    sent, came = call(q)
    assert came == b"m" and sent in (None, True)
    assert q.try_receive() is None


@pytest.mark.parametrize("call", NO_CALLS)
def test_what_is_no_call_of_theirs_sends_and_receives_nothing(q, call):
    q.send(b"there")
    with pytest.raises(TypeError):
        call(q)
    assert q.receive(5) == b"there" and q.try_receive() is None


@pytest.mark.parametrize("made", [lambda: Spsc(4096), lambda: Mpmc(4096), Queue])
def test_whoever_calls_from_c_may_give_an_empty_tuple_of_names(made):
    vectorcall = ctypes.pythonapi.PyObject_Vectorcall
    vectorcall.restype = ctypes.py_object
    vectorcall.argtypes = [ctypes.py_object, ctypes.c_void_p, ctypes.c_size_t, ctypes.py_object]
    q, message = made(), b"m"
    send, receive = (q.put, q.get) if isinstance(q, Queue) else (q.send, q.receive)
    assert vectorcall(send, ctypes.byref(ctypes.py_object(message)), 1, ()) is None
    assert vectorcall(receive, None, 0, ()) == message
    q.close()


def test_nobody_waits_who_said_so(q):
    for receive in (lambda: q.receive(0), lambda: q.receive(timeout=0.01)):
        with pytest.raises(TimeoutError):
            receive()
    while q.try_send(b"m" * 100):
        pass
    for send in (lambda: q.send(b"m" * 100, 0), lambda: q.send(b"m" * 100, timeout=0.01)):
        with pytest.raises(TimeoutError):
            send()
