"""The checks of notebook 14 accept right solutions and refuse typical wrong ones with the reason."""

import json
import time
import uuid

import pytest

from labkit.exercises.rpc import check_report, check_stub


def make_stub(ask):
    class Stub:
        def __getattr__(self, name):
            def call(**values):
                reply = json.loads(ask(json.dumps({"name": name, "values": values}).encode()))
                if "error" in reply:
                    raise RuntimeError(reply["error"])
                return reply["result"]

            return call

    return Stub()


def not_written(ask): ...


def knows_only_one(ask):
    class Stub:
        def mean(self, day): ...

    return Stub()


def never_asks(ask):
    class Stub:
        def __getattr__(self, name):
            return lambda **values: None

    return Stub()


def returns_the_reply(ask):
    class Stub:
        def __getattr__(self, name):
            return lambda **values: json.loads(ask(json.dumps({"name": name, "values": values}).encode()))

    return Stub()


def swallows_errors(ask):
    class Stub:
        def __getattr__(self, name):
            return lambda **values: json.loads(ask(json.dumps({"name": name, "values": values}).encode())).get("result")

    return Stub()


def sends_text(ask):
    class Stub:
        def __getattr__(self, name):
            return lambda **values: ask(json.dumps({"name": name, "values": values}))

    return Stub()


def flat_values(ask):
    class Stub:
        def __getattr__(self, name):
            return lambda **values: ask(json.dumps({"name": name, **values}).encode())

    return Stub()


def test_a_stub_for_any_procedure_is_right():
    verdict = check_stub(make_stub)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (not_written, "returns nothing"),
        (knows_only_one, "need not know the procedures"),
        (never_asks, "sent no request"),
        (returns_the_reply, "what is under 'result'"),
        (swallows_errors, "raise it here"),
        (sends_text, "ask takes bytes"),
        (flat_values, "and not"),
    ],
)
def test_a_wrong_stub_is_refused_with_the_reason(wrong, says):
    verdict = check_stub(wrong)
    assert not verdict.right and says in verdict.why


def report_surely(remote, celsius, seconds):
    request, end = str(uuid.uuid4()), time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            return remote.report(request=request, celsius=celsius, timeout=left)
        except (EOFError, OSError):
            time.sleep(min(0.05, left))
    raise TimeoutError("no answer")


def does_nothing(remote, celsius, seconds): ...


def tries_once(remote, celsius, seconds):
    return remote.report(request="1", celsius=celsius, timeout=seconds)


def expects_it_to_be_there(remote, celsius, seconds):
    for _ in range(100):
        try:
            return remote.report(request="1", celsius=celsius)
        except EOFError:
            pass
    return None


def a_new_name_each_time(remote, celsius, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            return remote.report(request=str(uuid.uuid4()), celsius=celsius)
        except (EOFError, OSError):
            time.sleep(0.05)
    raise TimeoutError


def gives_up_at_once(remote, celsius, seconds):
    for _ in range(100 if seconds > 5 else 1):
        try:
            return remote.report(request="1", celsius=celsius)
        except (EOFError, OSError):
            time.sleep(0.05)
    raise TimeoutError


def never_raises(remote, celsius, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            return remote.report(request="1", celsius=celsius)
        except (EOFError, OSError):
            time.sleep(0.05)
    return None


def forgets_to_return(remote, celsius, seconds):
    report_surely(remote, celsius, seconds)


def test_one_name_until_there_is_an_answer_is_right():
    verdict = check_report(report_surely)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (does_nothing, "made no call"),
        (tries_once, "labkit.Closed is an EOFError"),
        (expects_it_to_be_there, "nobody listens: try again"),
        (a_new_name_each_time, "Choose the name once"),
        (gives_up_at_once, "gave up after"),
        (never_raises, "raise TimeoutError"),
        (forgets_to_return, "return the answer"),
    ],
)
def test_a_report_that_is_lost_or_counts_twice_is_refused_with_the_reason(wrong, says):
    verdict = check_report(wrong)
    assert not verdict.right and says in verdict.why


words = (word for word in "abc")


def test_what_cannot_be_sent_to_a_process_is_refused_with_the_reason_and_leaves_no_server():
    verdict = check_report(lambda remote, celsius, seconds: next(words))
    assert not verdict.right and "cannot be sent to another process" in verdict.why
