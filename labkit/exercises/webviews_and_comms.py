"""Checks of notebook 20-webviews-and-comms. The learner's code meets a real kernel, started for the check."""

from __future__ import annotations

import copy
import dis
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from labkit.comms import ANSWER_SECONDS, FrontEnd
from labkit.exercises import Verdict

# --- an answer for each question --------------------------------------------------------------------------------

TARGET = """
def opened(comm, message):
    import threading
    def heard(message):
        before = threading.enumerate()
        try:
            {name}(comm, message["content"]["data"])
        except BaseException as error:  # also SystemExit, which would end the kernel
            comm.send({{"raised": f"{{type(error).__name__}}: {{error}}"}})
        for thread in {{*threading.enumerate()}} - {{*before}}:
            thread.join(10)  # it may be the one that answers
    comm.on_msg(heard)
get_ipython().kernel.comm_manager.register_target("exercise", opened)
"""

FUNCTIONS = """
FUNCTIONS = {"double": lambda n: 2 * n, "join": lambda a, b: a + b, "divide": lambda a, b: a / b}
"""

QUESTIONS = (
    ({"id": 7, "call": "double", "args": [21]}, {"id": 7, "result": 42}),
    ({"id": "eight", "call": "join", "args": ["bread", "milk"]}, {"id": "eight", "result": "breadmilk"}),
    ({"id": 9, "call": "divide", "args": [1, 0]}, {"id": 9, "error": "ZeroDivisionError: division by zero"}),
    ({"id": 10, "call": "erase", "args": []}, {"id": 10, "error": None}),
    ({"id": 11, "call": "double", "args": [0]}, {"id": 11, "result": 0}),
)


def check_answer(answer: Callable[..., Any]) -> Verdict:
    """Whether answer(comm, question) sends one answer for each question, with its number, also when it goes wrong.

    Args:
        answer: the learner's function. Its text is run in a kernel, which has FUNCTIONS, together with the text of
            functions of the learner that it calls, and with the imports that they use.
    """
    try:
        source = "\n".join(_texts(answer, {}).values())
    except (OSError, TypeError):
        return Verdict(False, "its text cannot be found, and the kernel needs it: write it with def, in a cell.")
    with FrontEnd() as front:
        try:
            front.run(FUNCTIONS + source + TARGET.format(name=answer.__name__))
        except RuntimeError as error:
            return Verdict(False, f"the kernel could not run your function: {error}.{_missing(error)}")
        comm, _ = front.open("exercise")
        for question, wanted in QUESTIONS:
            try:
                came = comm.send(question)
            except TimeoutError:
                return Verdict(
                    False,
                    f"the question was {question}, and the kernel is not done with it after {ANSWER_SECONDS} s: your "
                    "function does not return, or has ended the kernel.",
                )
            if wrong := _wrong_answer(came, question, wanted):
                hint = " A listener is not awaited: write def." if inspect.iscoroutinefunction(answer) else ""
                return Verdict(False, f"{wrong}{hint}{_missing(came)}")
    return Verdict(True, "each question has one answer, with its number, and errors are answers too: that is invoke.")


def _texts(function: Any, found: dict[str, str]) -> dict[str, str]:
    """The texts of a function and of what it needs of the notebook, by name, in the order in which to run them.

    Raises:
        OSError, TypeError: there is none.
    """
    if not inspect.isfunction(function) or not function.__name__.isidentifier():
        raise TypeError("only a function has a text, and only a name can be called")
    text = textwrap.dedent(inspect.getsource(function))
    found[function.__name__] = ""  # it may call itself
    for name in _globals(function.__code__):
        if name in found or name not in function.__globals__:
            continue
        needed = function.__globals__[name]
        if inspect.ismodule(needed):
            found[name] = f"import {needed.__name__} as {name}"
        elif inspect.isfunction(needed) and needed.__module__ == function.__module__:
            _texts(needed, found)
        elif hasattr(needed, "__name__") and getattr(needed, "__module__", None) in sys.modules.keys() - {
            function.__module__
        }:
            found[name] = f"from {needed.__module__} import {needed.__name__} as {name}"
    del found[function.__name__]
    found[function.__name__] = text
    return found


def _globals(code: Any) -> set[str]:
    """The names of globals that some code uses. inspect.getclosurevars takes those of attributes for such, too."""
    inner = [_globals(each) for each in code.co_consts if inspect.iscode(each)]
    return {each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}.union(*inner)


def _missing(told: object) -> str:
    if "NameError" not in str(told):
        return ""
    return " The kernel has the text of your function, and not your notebook: say in it what it needs."


def _wrong_answer(came: list[Any], question: dict[str, Any], wanted: dict[str, Any]) -> str:
    asked = f"the question was {question}"
    if not came:
        return (
            f"{asked}, and nothing was sent by the time your function had returned. What a listener returns goes "
            "nowhere: comm.send(...)."
        )
    got = came[0]
    if not isinstance(got, dict):
        return f"{asked}, and the answer {got!r} is {_what(got)}: send a dictionary, a comm makes JSON of it."
    if "raised" in got:
        return (
            f"{asked}, and your function raised {got['raised']}. It would be a line in the kernel's log; who has asked "
            "waits for ever. Catch it, and answer with it."
        )
    if len(came) > 1:
        return f"{asked}, and {len(came)} messages came: {came}. One answer for each question."
    if "id" not in got:
        return f"{asked}, and the answer {got} has no id: who has asked two things cannot tell which this is."
    if got["id"] != wanted["id"]:
        return f"{asked}, and the answer {got} has another question's id."
    if wanted.get("error") is None and "error" in wanted:
        return "" if got.get("error") else f"{asked}; there is no such function, and the answer {got} has no error."
    if got != wanted:
        return f"{asked}, and the answer was {got}, not {wanted}."
    return ""


# --- what a browser would show ------------------------------------------------------------------------------------

WIDGETS = """
import ipywidgets as widgets
first = widgets.IntSlider(value=3, description="first")
second = widgets.Text(value="bread", description="second")
third = widgets.Text(value="gone soon")
first.value = 5
second.value = "milk"
first.send({"method": "update", "state": {"value": 99}})   # a message of its own, which is no state
first.max = 50
third.close()
first.value = 8
"""


def recorded() -> list[tuple[str, dict[str, Any]]]:
    """The comm messages of a kernel that makes three widgets, changes two of them, and closes one."""
    with FrontEnd() as front:
        heard = front.run(WIDGETS)
    return [(told.kind, told.content) for told in heard if told.kind.startswith("comm_")]


def check_state(show: Callable[..., Any], messages: list[tuple[str, dict[str, Any]]] | None = None) -> Verdict:
    """Whether show(messages) returns the state of each widget that is open, by comm_id.

    Args:
        show: the learner's function.
        messages: (kind, content) of each comm message, in order; those of a kernel started for the check unless given.
    """
    messages = messages or recorded()
    try:
        opened = {content["comm_id"]: content["data"]["state"] for kind, content in messages if kind == "comm_open"}
        closed = {content["comm_id"] for kind, content in messages if kind == "comm_close"}
    except (KeyError, TypeError, ValueError):
        return Verdict(False, "the messages are not what was recorded any more: run the cell that records them again.")
    try:
        shown = show(copy.deepcopy(messages))
    except Exception as error:
        return Verdict(False, f"your function raised {type(error).__name__}: {error}. Look at the kinds of messages.")
    if inspect.iscoroutine(shown):
        shown.close()
    if not isinstance(shown, Mapping):
        return Verdict(
            False, f"you return {_what(shown)}: return a dictionary, the state of each widget by its comm_id."
        )
    if left := closed & shown.keys():
        return Verdict(False, f"{len(left)} widget is still shown, though comm_close has come: it is gone.")
    if missing := opened.keys() - closed - shown.keys():
        return Verdict(False, f"{len(missing)} of {len(opened) - len(closed)} widgets are not shown: one by comm_id.")
    if extra := shown.keys() - opened.keys():
        return Verdict(False, f"{sorted(map(str, extra))} are no comm_ids that were opened.")
    for number, state in opened.items():
        if number not in closed and (wrong := _wrong_state(shown[number], state)):
            return Verdict(False, wrong)
    return Verdict(True, "that is all a browser knows: it has never seen a Python object, only what was said of it.")


def _what(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _wrong_state(shown: Any, opened: dict[str, Any]) -> str:
    name = opened.get("_model_name")
    if not isinstance(shown, Mapping):
        return f"the state of a {name} is {_what(shown)}: it is a dictionary."
    if lost := opened.keys() - shown.keys():
        return (
            f"a {name} has lost {len(lost)} of its {len(opened)} properties. An update tells what has *changed*; the "
            "rest stays as it was."
        )
    last: dict[str, dict[str, Any]] = {"IntSliderModel": {"value": 8, "max": 50}, "TextModel": {"value": "milk"}}
    for key, value in last.get(str(name), {}).items():
        if shown[key] == 99:
            return (
                "the slider shows 99. That came in a message of the widget's own, method 'custom': it only looks like "
                "an update inside."
            )
        if shown[key] != value:
            return f"{key} of the {name} is {value!r} by now, and you show {shown[key]!r}: later messages win."
    return ""
