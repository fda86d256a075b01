"""The checks of notebook 17-how-jupyter-talks accept right solutions and refuse typical wrong ones with the reason."""

import asyncio
import hashlib
import hmac

import numpy as np
import pytest
from jupyter_client.session import Session
from jupyter_core.utils import run_sync

from labkit.exercises.jupyter_talks import check_done, check_verify


@pytest.fixture(scope="module", autouse=True)
def event_loop_of_jupyter():
    """Which jupyter_client makes when it first waits for something, and keeps."""
    run_sync(asyncio.sleep)(0)


DELIMITER = b"<IDS|MSG>"


def signature(key, parts):
    return hmac.new(key, b"".join(parts), hashlib.sha256).hexdigest().encode()


def verify(key, frames):
    if DELIMITER not in frames:
        return False
    begin = frames.index(DELIMITER) + 1
    if len(frames) < begin + 5:
        return False
    return hmac.compare_digest(frames[begin], signature(key, frames[begin + 1 : begin + 5]))


def not_written(key, frames): ...


def believes_everything(key, frames):
    return True


def expects_no_identities(key, frames):
    return frames[0] == DELIMITER and hmac.compare_digest(frames[1], signature(key, frames[2:6]))


def signs_buffers_too(key, frames):
    begin = frames.index(DELIMITER) + 1
    return hmac.compare_digest(frames[begin], signature(key, frames[begin + 1 :]))


def signs_the_content_only(key, frames):
    begin = frames.index(DELIMITER) + 1
    return hmac.compare_digest(frames[begin], signature(key, frames[begin + 4 : begin + 5]))


def expects_a_delimiter(key, frames):
    begin = frames.index(DELIMITER) + 1
    return hmac.compare_digest(frames[begin], signature(key, frames[begin + 1 : begin + 5]))


def has_jupyter_verify(key, frames):
    session = Session(key=key)
    try:
        _, parts = session.feed_identities(frames)
        session.deserialize(parts)
    except (ValueError, TypeError):
        return False
    return True


def compares_bytes(key, frames):
    try:
        signature, *parts = frames[frames.index(DELIMITER) + 1 :][:5]
    except ValueError:
        return False
    return len(parts) == 4 and signature == hmac.digest(key, b"".join(parts), "sha256").hex().encode()


async def waits_to_be_awaited(key, frames):
    return verify(key, frames)


def yields_it(key, frames):
    yield verify(key, frames)


def sends_no_hexadecimal(key, frames):
    begin = frames.index(DELIMITER) + 1
    return frames[begin] == hmac.digest(key, b"".join(frames[begin + 1 : begin + 5]), "sha256")


def raises_instead(key, frames):
    if not verify(key, frames):
        raise ValueError("not signed")
    return True


@pytest.mark.parametrize("right", [verify, has_jupyter_verify, compares_bytes])
def test_who_checks_all_four_parts_with_the_key_is_right(right):
    verdict = check_verify(right)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (not_written, "returns nothing"),
        (believes_everything, "signed with another key: your function returns True"),
        (expects_no_identities, "two identities before the delimiter"),
        (signs_buffers_too, "a buffer behind it, which is not signed"),
        (signs_the_content_only, "signed with the key: your function returns False"),
        (expects_a_delimiter, "frames without a delimiter: your function raised ValueError"),
        (waits_to_be_awaited, "returns a coroutine, and has not run"),
        (yields_it, "returns a generator, and has not run"),
        (sends_no_hexadecimal, "in hexadecimal"),
        (raises_instead, "Return False"),
    ],
)
def test_a_wrong_verification_is_refused_with_the_reason(wrong, says):
    verdict = check_verify(wrong)
    assert not verdict.right and says in verdict.why


def done(messages, msg_id):
    for position, message in enumerate(messages):
        ours = message.parent.get("msg_id") == msg_id
        if ours and message.type == "status" and message.content["execution_state"] == "idle":
            return position
    return None


def returns_nothing(messages, msg_id): ...


def any_idle(messages, msg_id):
    return next((n for n, m in enumerate(messages) if m.content.get("execution_state") == "idle"), None)


def the_first_status(messages, msg_id):
    return next((n for n, m in enumerate(messages) if m.parent.get("msg_id") == msg_id and m.type == "status"), None)


def the_result(messages, msg_id):
    ours = (n for n, m in enumerate(messages) if m.parent.get("msg_id") == msg_id and m.type == "execute_result")
    return next(ours, None)


def the_last_message(messages, msg_id):
    return max(n for n, m in enumerate(messages) if m.parent.get("msg_id") == msg_id)


def the_message_itself(messages, msg_id):
    position = done(messages, msg_id)
    return None if position is None else messages[position]


def with_numpy(messages, msg_id):
    found = np.flatnonzero([m.parent.get("msg_id") == msg_id and "idle" in m.content.values() for m in messages])
    return found[0] if len(found) else None


def the_last_idle(messages, msg_id):
    idle = {m.parent.get("msg_id"): n for n, m in enumerate(messages) if m.content.get("execution_state") == "idle"}
    return idle.get(msg_id)


def one_too_many(messages, msg_id):
    position = done(messages, msg_id)
    return None if position is None else position + 1


def one_too_many_with_numpy(messages, msg_id):
    position = with_numpy(messages, msg_id)
    return None if position is None else position + 1


def minus_one(messages, msg_id):
    position = done(messages, msg_id)
    return -1 if position is None else position


def the_first_idle_after_its_beginning(messages, msg_id):
    begun = False
    for position, message in enumerate(messages):
        begun |= message.parent.get("msg_id") == msg_id
        if begun and message.content.get("execution_state") == "idle":
            return position
    return None


def the_idle_after_its_result(messages, msg_id):
    position = the_result(messages, msg_id)
    return None if position is None else done(messages, msg_id)


def whatever_is_not_the_result(messages, msg_id):
    ours = [n for n, m in enumerate(messages) if m.parent.get("msg_id") == msg_id]
    return ours[-1] if ours and messages[ours[-1]].type != "execute_result" else None


def an_array(messages, msg_id):
    return np.flatnonzero([position == done(messages, msg_id) for position in range(len(messages))])


def a_float(messages, msg_id):
    position = done(messages, msg_id)
    return None if position is None else float(position)


async def is_async(messages, msg_id):
    return done(messages, msg_id)


@pytest.mark.parametrize("right", [done, with_numpy, the_last_idle])
def test_idle_of_the_request_is_right(right):
    verdict = check_done(right)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (returns_nothing, "your function returns nothing"),
        (any_idle, "belongs to another request"),
        (the_first_status, "busy is its beginning"),
        (the_result, "more came of it after that"),
        (the_last_message, "Only the status idle says"),
        (the_message_itself, "a position in the list"),
        (one_too_many, "belongs to what came later"),
        (one_too_many_with_numpy, "belongs to what came later"),
        (minus_one, "returns -1, and right is None"),
        (the_first_idle_after_its_beginning, "belongs to another request"),
        (the_idle_after_its_result, "your function returns nothing"),
        (whatever_is_not_the_result, "more came of it after that"),
        (an_array, "a position in the list"),
        (a_float, "a position in the list"),
        (is_async, "returns a coroutine, and has not run"),
    ],
)
def test_a_wrong_end_is_refused_with_the_reason(wrong, says):
    verdict = check_done(wrong)
    assert not verdict.right and says in verdict.why
