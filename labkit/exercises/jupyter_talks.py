"""Checks of notebook 17-how-jupyter-talks."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import inspect
import json
import operator
import subprocess
from collections.abc import Callable
from typing import Any

from labkit.exercises import Verdict
from labkit.wiretap import DELIMITER, Heard, Wiretap

# --- is it signed? ------------------------------------------------------------------------------------------------

KEY = b"0f6c1a4e-a key that nobody else has"


HEADER = {
    "msg_id": "5a3d-1",
    "session": "5a3d",
    "username": "ann",
    "date": "2026-01-01T12:00:00.000000Z",
    "msg_type": "execute_request",
    "version": "5.4",
}


def _message(key: bytes = KEY) -> list[bytes]:
    parts = [json.dumps(HEADER).encode(), b"{}", b"{}", b'{"code": "6 * 7"}']
    return [DELIMITER, hmac.new(key, b"".join(parts), hashlib.sha256).hexdigest().encode(), *parts]


def check_verify(verify: Callable[..., Any]) -> Verdict:
    """Whether verify(key, frames) tells a message made by somebody who knows the key from all others.

    Args:
        verify: the learner's function.
    """
    good, foreign = _message(), _message(b"another key")
    changed = [*good[:-1], b'{"code": "6 * 8"}']
    header = [*good[:2], json.dumps(HEADER | {"msg_type": "shutdown_request"}).encode(), *good[3:]]
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
            hint = "" if right else ". Return False for it."
            return Verdict(False, f"{what}: your function raised {type(error).__name__}: {error}{hint}")
        if said is None or said is ...:
            return Verdict(False, f"{what}: your function returns nothing. Return True or False.")
        if wrong := _never_ran(said):
            return Verdict(False, wrong)
        if bool(said) != right:
            hint = " The signature is an HMAC-SHA256 of the four frames behind it, in hexadecimal." if right else ""
            return Verdict(False, f"{what}: your function returns {said!r}.{hint}")
    return Verdict(True, f"{len(cases)} messages, and every one that nobody with the key had made was refused.")


def _never_ran(said: Any) -> str:
    """What to say of a function that has not run at all, because it waits to be awaited or iterated."""
    if not inspect.iscoroutine(said) and not inspect.isgenerator(said):
        return ""
    said.close()
    return f"your function returns a {type(said).__name__}, and has not run: write it with def, return, and no `async`."


# --- is my cell done? ---------------------------------------------------------------------------------------------


@functools.cache
def _overheard() -> tuple[tuple[Heard, ...], dict[str, str]]:
    """What a real kernel publishes for two front ends; and the ids of their requests, with whose they are.

    The first asks while the cell of the second one still runs, and so its two cells wait behind that. On the control
    socket nothing waits: it is told the kernel's name in the middle of it, which has a beginning and an end as well.
    """
    from jupyter_client import KernelManager

    manager = KernelManager()
    manager.start_kernel(stderr=subprocess.DEVNULL)
    try:
        with Wiretap(manager) as tap:
            first, second = tap.client(), tap.client()
            tap.forget()
            other = second.execute("input()\nprint('the other one')\n1")
            second.get_stdin_msg(timeout=30)  # it runs, and does not go on before it has its line
            ours = first.execute("print('ours')\nimport sys\nprint('and more', file=sys.stderr)\n2 * 21")
            quiet = first.execute("x = 2 * 21")
            control = first.session.msg("kernel_info_request", {})
            first.control_channel.send(control)
            while not _ends(first.get_iopub_msg(timeout=30), control["header"]["msg_id"]):
                pass
            second.input("go on")
            for client, request in ((second, other), (first, ours), (first, quiet)):
                reply = client.get_shell_msg(timeout=30)
                while reply["parent_header"].get("msg_id") != request:
                    reply = client.get_shell_msg(timeout=30)
            tap.settle()
            for client in (first, second):
                client.stop_channels()
            whose = {ours: "the first front end's", other: "the second front end's", quiet: "the first's second"}
            return tuple(tap.heard("iopub")), whose
    finally:
        manager.shutdown_kernel(now=True)


def _ends(message: dict[str, Any], request: str) -> bool:
    return message["parent_header"].get("msg_id") == request and message["content"].get("execution_state") == "idle"


def _idle(heard: Heard, request: str) -> bool:
    return heard.parent.get("msg_id") == request and heard.content.get("execution_state") == "idle"


def check_done(done: Callable[..., Any]) -> Verdict:
    """Whether done(messages, msg_id) finds after which message nothing more comes of a request.

    Args:
        done: the learner's function. The messages are those of a real kernel with two front ends.
    """
    heard, requests = _overheard()
    for request, whose in requests.items():
        position = next(n for n, each in enumerate(heard) if _idle(each, request))
        cases = [(heard, position), *((heard[:until], None) for until in range(position, -1, -1))]
        for messages, expected in cases:
            try:
                said = _position(done(list(messages), request))
            except Exception as error:
                return Verdict(False, f"{len(messages)} messages: your function raised {type(error).__name__}: {error}")
            if type(said) is not type(expected) or said != expected:
                return Verdict(False, _why(said, expected, messages, request, whose))
    return Verdict(
        True,
        f"{len(heard)} messages of a real kernel, and for {len(requests)} requests the end was found, and not before "
        "it came.",
    )


def _position(said: Any) -> Any:
    """An int of what is one, as numpy's are."""
    with contextlib.suppress(TypeError):
        return said if isinstance(said, bool) else operator.index(said)
    return said


def _why(said: Any, expected: int | None, messages: tuple[Heard, ...], request: str, whose: str) -> str:
    if said is None:
        return (
            f"{whose} request was done with message {expected}, and your function returns nothing: a status says idle, "
            "and its parent is that request."
        )
    if wrong := _never_ran(said):
        return wrong
    if type(said) is not int or not 0 <= said < len(messages):
        return (
            f"of {len(messages)} messages your function returns {said!r}, and right is {expected}: a position in the "
            "list, which begins with 0, or None."
        )
    if expected is not None and said > expected:
        return f"{whose} request was done with message {expected}, and you say {said}: it belongs to what came later."
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
