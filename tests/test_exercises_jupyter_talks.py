"""The checks of notebook 17-how-jupyter-talks accept right solutions and refuse typical wrong ones with the reason."""

import asyncio
import hashlib
import hmac

import pytest
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


def test_who_checks_all_four_parts_with_the_key_is_right():
    assert check_verify(verify).right


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (not_written, "returns nothing"),
        (believes_everything, "signed with another key: your function returns True"),
        (expects_no_identities, "two identities before the delimiter"),
        (signs_buffers_too, "a buffer behind it, which is not signed"),
        (signs_the_content_only, "signed with the key: your function returns False"),
        (expects_a_delimiter, "frames without a delimiter: your function raised ValueError"),
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


def test_idle_of_the_request_is_right():
    verdict = check_done(done)
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
    ],
)
def test_a_wrong_end_is_refused_with_the_reason(wrong, says):
    verdict = check_done(wrong)
    assert not verdict.right and says in verdict.why
