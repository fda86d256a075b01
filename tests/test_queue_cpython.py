"""CPython's own tests of multiprocessing.Queue, run with labkit.Queue in its place.

They come with Python, in the package `test` of its library; where a distribution leaves that out they are skipped.
"""

from __future__ import annotations

import concurrent.futures.process
import multiprocessing
import multiprocessing.queues
import unittest

import pytest

import labkit

theirs = pytest.importorskip(
    "test._test_multiprocessing",
    reason="NOT TESTED: this Python comes without its own tests (Debian: apt-get install libpython3-testsuite)",
)

pytestmark = pytest.mark.every_python

DIFFERENT = {
    "test_queue_feeder_donot_stop_onexc": "expects the error of an unpicklable object to be printed; ours is raised",
}


@pytest.fixture(scope="module", autouse=True)
def with_multiprocessings_forkserver(forkserver):
    """Its processes and descriptors are there before the first test."""


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """Whoever says multiprocessing.Queue gets ours."""
    for name in ("Queue", "JoinableQueue", "SimpleQueue"):
        monkeypatch.setattr(multiprocessing, name, getattr(labkit, name))
        monkeypatch.setattr(multiprocessing.queues, name, getattr(labkit, name))


@pytest.fixture(autouse=True, params=["fork", "forkserver", "spawn"])
def start_method(request):
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


class QueueTests(theirs._TestQueue, theirs.ProcessesMixin, unittest.TestCase):
    __test__ = False  # pytest is not to collect it: the tests below run it
    Queue = staticmethod(lambda maxsize=0: labkit.Queue(maxsize))
    JoinableQueue = staticmethod(lambda maxsize=0: labkit.JoinableQueue(maxsize))


class SimpleQueueTests(theirs.TestSimpleQueue):
    __test__ = False


def named(tests: type) -> list[str]:
    return unittest.TestLoader().getTestCaseNames(tests)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", named(QueueTests))
def test_cpythons_tests_of_the_queue_pass(name, start_method):
    if name in DIFFERENT:
        with pytest.raises(AttributeError):
            run(QueueTests, name)
    else:
        run(QueueTests, name)


@pytest.mark.parametrize("name", named(SimpleQueueTests))
def test_cpythons_tests_of_the_simple_queue_pass(name, start_method):
    run(SimpleQueueTests, name)


def run(tests: type, name: str) -> None:
    case = tests(name)
    try:
        case.setUp()
        try:
            getattr(case, name)()
        finally:
            case.tearDown()
            case.doCleanups()
    except unittest.SkipTest as why:
        pytest.skip(str(why))


# --- concurrent.futures builds on it ------------------------------------------------------------------------


class SafeQueue(labkit.Queue):
    """The pool's call queue: a subclass with a hook for errors, which is given the object."""

    def __init__(self, max_size=0, *, ctx, **of_the_pool):
        self.__dict__.update(of_the_pool)
        super().__init__(max_size, ctx=ctx)

    _on_queue_feeder_error = vars(concurrent.futures.process._SafeQueue)["_on_queue_feeder_error"]


def test_a_process_pool_works_with_it(monkeypatch, start_method):
    monkeypatch.setattr(concurrent.futures.process, "_SafeQueue", SafeQueue)
    context = multiprocessing.get_context(start_method)
    monkeypatch.setattr(context, "SimpleQueue", labkit.SimpleQueue, raising=False)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(pow, range(50), range(50))) == [n**n for n in range(50)]
        assert pool.submit(len, bytes(1_000_000)).result(60) == 1_000_000
        with pytest.raises(Exception, match="pickle"):
            pool.submit(len, (n for n in range(3))).result(60)
        assert pool.submit(abs, -3).result(60) == 3


def test_a_pool_of_multiprocessing_works_with_it(monkeypatch, start_method):
    context = multiprocessing.get_context(start_method)
    monkeypatch.setattr(context, "SimpleQueue", labkit.SimpleQueue, raising=False)
    with context.Pool(2) as pool:
        assert pool.map(abs, range(-100, 100)) == [abs(n) for n in range(-100, 100)]
        assert pool.apply(len, (bytes(1_000_000),)) == 1_000_000
        with pytest.raises(ZeroDivisionError):
            pool.apply(divmod, (1, 0))
        assert sorted(pool.imap_unordered(abs, range(-10, 0))) == list(range(1, 11))
