"""Checks of notebook 17-how-jupyter-talks."""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import subprocess
from collections.abc import Callable
from typing import Any

from labkit.exercises import Verdict
from labkit.wiretap import DELIMITER, Heard, Wiretap

# --- is it signed? ------------------------------------------------------------------------------------------------

KEY = b"0f6c1a4e-a key that nobody else has"


def _message(key: bytes = KEY, content: str = '{"code": "6 * 7"}') -> list[bytes]:
    parts = [json.dumps({"msg_type": "execute_request"}).encode(), b"{}", b"{}", content.encode()]
    return [DELIMITER, hmac.new(key, b"".join(parts), hashlib.sha256).hexdigest().encode(), *parts]


def check_verify(verify: Callable[..., Any]) -> Verdict:
    """Whether verify(key, frames) tells a message made by somebody who knows the key from all others.

    Args:
        verify: the learner's function.
    """
    good, foreign = _message(), _message(b"another key")
    changed = [*good[:-1], b'{"code": "6 * 8"}']
    header = [*good[:2], b'{"msg_type": "shutdown_request"}', *good[3:]]
    unkeyed = [DELIMITER, hashlib.sha256(b"".join(good[2:])).hexdigest().encode(), *good[2:]]
    cases = [
        (good, True, "a message that was signed with the key"),
        ([b"\x00\x80\x00identity", b"another", *good], True, "the same, with two identities before the delimiter"),
        ([*good, b"\x00\x01 a buffer"], True, "the same, with a buffer behind it, which is not signed"),
        (foreign, False, "a message that was signed with another key"),
        (changed, False, "a message whose content was changed after it was signed"),
        (header, False, "a message whose header was changed after it was signed: all four parts are signed"),
        (unkeyed, False, "a message with a hash of its parts, without the key, which everybody can make"),
        ([DELIMITER, b"", *good[2:]], False, "a message with an empty signature"),
        (good[1:], False, "frames without a delimiter"),
        (good[:3], False, "a message that ends after its header"),
    ]
    for frames, right, what in cases:
        try:
            said = verify(KEY, list(frames))
        except Exception as error:
            return Verdict(False, f"{what}: your function raised {type(error).__name__}: {error}")
        if said is None or said is ...:
            return Verdict(False, f"{what}: your function returns nothing. Return True or False.")
        if bool(said) != right:
            return Verdict(False, f"{what}: your function returns {said!r}.")
    return Verdict(True, f"{len(cases)} messages, and every one that nobody with the key had made was refused.")


# --- is my cell done? ---------------------------------------------------------------------------------------------


@functools.cache
def _overheard() -> tuple[tuple[Heard, ...], str, str]:
    """What a real kernel publishes for two front ends, and the ids of their requests.

    The first asks while the cell of the second one still runs, and so waits behind it.
    """
    from jupyter_client import KernelManager

    manager = KernelManager()
    manager.start_kernel(stderr=subprocess.DEVNULL)
    try:
        with Wiretap(manager) as tap:
            clients = [tap.client(), tap.client()]
            tap.forget()
            other = clients[1].execute("import time; time.sleep(0.3); print('the other one'); 1")
            tap.wait_for("execute_input")
            ours = clients[0].execute("print('ours')\nimport sys\nprint('and more', file=sys.stderr)\n2 * 21")
            for client in reversed(clients):
                reply = client.get_shell_msg(timeout=30)
                while reply["msg_type"] != "execute_reply":
                    reply = client.get_shell_msg(timeout=30)
            tap.settle()
            for client in clients:
                client.stop_channels()
            return tuple(tap.heard("iopub")), ours, other
    finally:
        manager.shutdown_kernel(now=True)


def _idle(heard: Heard, request: str) -> bool:
    return heard.parent.get("msg_id") == request and heard.content.get("execution_state") == "idle"


def check_done(done: Callable[..., Any]) -> Verdict:
    """Whether done(messages, msg_id) finds after which message nothing more comes of a request.

    Args:
        done: the learner's function. The messages are those of a real kernel with two front ends.
    """
    heard, ours, other = _overheard()
    right = {request: next(n for n, h in enumerate(heard) if _idle(h, request)) for request in (ours, other)}
    for request, whose in ((ours, "the first front end's"), (other, "the second front end's")):
        position = right[request]
        for messages, expected in ((heard, position), (heard[:position], None)):
            try:
                said = done(list(messages), request)
            except Exception as error:
                return Verdict(False, f"your function raised {type(error).__name__}: {error}")
            if said != expected:
                return Verdict(False, _why(said, expected, messages, request, whose))
    return Verdict(
        True,
        f"{len(heard)} messages of a real kernel, and for both requests the end was found, and not before it came.",
    )


def _why(said: Any, expected: int | None, messages: tuple[Heard, ...], request: str, whose: str) -> str:
    if said is None or said is ...:
        return (
            f"{whose} request was done with message {expected}, and your function returns nothing: a status says idle, "
            "and its parent is that request."
        )
    if not isinstance(said, int) or isinstance(said, bool) or not 0 <= said < len(messages):
        return f"your function returns {said!r}: a position in the list, or None."
    found = messages[said]
    what = f"message {said}, {found.type} {found.content.get('execution_state', '')}".rstrip()
    if found.parent.get("msg_id") != request:
        return (
            f"you say that {whose} request was done with {what}. That belongs to another request: everybody hears "
            "everything on iopub, so look at the parent's msg_id."
        )
    if found.content.get("execution_state") == "busy":
        return f"you say that {whose} request was done with {what}: busy is its beginning."
    return (
        f"you say that {whose} request was done with {what}, and more came of it after that. Only the status idle says "
        "that all has been published."
    )
