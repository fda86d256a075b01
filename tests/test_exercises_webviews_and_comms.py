"""The checks of notebook 20-webviews-and-comms accept right solutions and refuse typical wrong ones with the reason."""

import copy
import json
import threading
from collections import ChainMap
from traceback import format_exception_only as lines_of

import pytest

from labkit.exercises.webviews_and_comms import check_answer, check_state, recorded

pytestmark = pytest.mark.leaves("descriptors", "threads", reason="jupyter_client keeps its event loop for the session")

FUNCTIONS = {}  # the kernel has them

# --- an answer for each question --------------------------------------------------------------------------------


def answer(comm, question):
    try:
        comm.send({"id": question["id"], "result": FUNCTIONS[question["call"]](*question["args"])})
    except Exception as error:
        comm.send({"id": question["id"], "error": f"{type(error).__name__}: {error}"})


send = lambda: None  # noqa: E731  # of a cell above: another one than comm.send


def called(question):
    return FUNCTIONS[question["call"]](*question["args"])


def with_a_helper_and_imports(comm, question):
    try:
        told = {"result": called(question)}
    except Exception as error:
        told = {"error": lines_of(error)[0].strip()}
    comm.send(json.loads(json.dumps({"id": question["id"], **told})))


def from_a_thread(comm, question):
    threading.Thread(target=answer, args=(comm, question)).start()


def in_a_function_of_its_own(comm, question):
    def told():
        return {"result": called(question)}

    try:
        comm.send({"id": question["id"], **told()})
    except Exception as error:
        comm.send({"id": question["id"], "error": next(line.strip() for line in lines_of(error))})


def looks_before_it_calls(comm, question):
    match question:
        case {"id": number, "call": name, "args": args} if name in FUNCTIONS:
            try:
                comm.send(data={"id": number, "result": FUNCTIONS[name](*args)})
            except BaseException as error:
                comm.send(data={"id": number, "error": f"{type(error).__name__}: {error}"})
        case _:
            comm.send({"id": question["id"], "error": f"LookupError: {question['call']}"})


def not_written(comm, question): ...


async def is_async(comm, question):
    answer(comm, question)


def sends_json(comm, question):
    comm.send(json.dumps({"id": question["id"], "result": called(question)}))


def exits(comm, question):
    raise SystemExit(3)


def names_what_there_is_not(comm, question):
    comm.send({"id": question["id"], "result": no_such_function(question)})  # noqa: F821


def passes_on_the_list(comm, question):
    comm.send({"id": question["id"], "result": FUNCTIONS[question["call"]](question["args"])})


def ends_the_kernel(comm, question):
    import os

    os._exit(1)


a_lambda = lambda comm, question: answer(comm, question)  # noqa: E731


def returns_it(comm, question):
    return {"id": question["id"], "result": FUNCTIONS[question["call"]](*question["args"])}


def without_a_number(comm, question):
    comm.send({"result": FUNCTIONS[question["call"]](*question["args"])})


def with_a_number_of_its_own(comm, question):
    comm.send({"id": 7, "result": FUNCTIONS[question["call"]](*question["args"])})


def raises(comm, question):
    comm.send({"id": question["id"], "result": FUNCTIONS[question["call"]](*question["args"])})


def only_the_text(comm, question):
    try:
        comm.send({"id": question["id"], "result": FUNCTIONS[question["call"]](*question["args"])})
    except Exception as error:
        comm.send({"id": question["id"], "error": str(error)})


def is_silent_about_unknown_ones(comm, question):
    if question["call"] in FUNCTIONS:
        answer = {"id": question["id"]}
        try:
            answer["result"] = FUNCTIONS[question["call"]](*question["args"])
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        comm.send(answer)


def twice(comm, question):
    comm.send({"id": question["id"], "state": "working"})
    comm.send({"id": question["id"], "result": 42})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (answer, ""),
        (with_a_helper_and_imports, ""),
        (from_a_thread, ""),
        (in_a_function_of_its_own, ""),
        (looks_before_it_calls, ""),
        (not_written, "nothing was sent"),
        (returns_it, "returns goes nowhere"),
        (without_a_number, "has no id"),
        (with_a_number_of_its_own, "another question's id"),
        (raises, "waits for ever"),
        (only_the_text, "not {'id': 9, 'error': 'ZeroDivisionError"),
        (is_silent_about_unknown_ones, "'erase', 'args': []}, and nothing was sent"),
        (twice, "One answer for each question"),
        (eval("lambda comm, question: None"), "write it with def"),
        (a_lambda, "write it with def"),
        (is_async, "A listener is not awaited"),
        (sends_json, "is a str: send a dictionary"),
        (exits, "raised SystemExit"),
        (names_what_there_is_not, "and not your notebook"),
        (passes_on_the_list, "'result': [21, 21]"),
        (ends_the_kernel, "or has ended the kernel"),
    ],
)
def test_an_answer_is_judged_with_the_reason(given, says):
    verdict = check_answer(given)
    assert verdict.right == (not says) and says in verdict.why, verdict


# --- what a browser would show ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def messages():
    return recorded()


def show(messages):
    states = {}
    for kind, content in messages:
        comm, data = content["comm_id"], content["data"]
        if kind == "comm_open":
            states[comm] = dict(data["state"])
        elif kind == "comm_close":
            states.pop(comm)
        elif data["method"] == "update":
            states[comm].update(data["state"])
    return states


def forgets_the_rest(messages):
    states = {}
    for kind, content in messages:
        if kind == "comm_close":
            states.pop(content["comm_id"])
        elif "state" in content["data"]:
            states[content["comm_id"]] = content["data"]["state"]
    return states


def never_closes(messages):
    states = {}
    for _, content in messages:
        states.setdefault(content["comm_id"], {}).update(content["data"].get("state", {}))
    return states


def only_opens(messages):
    closed = [content["comm_id"] for kind, content in messages if kind == "comm_close"]
    opened = [content for kind, content in messages if kind == "comm_open"]
    return {each["comm_id"]: each["data"]["state"] for each in opened if each["comm_id"] not in closed}


def takes_custom_for_an_update(messages):
    states = {}
    for kind, content in messages:
        comm, data = content["comm_id"], content["data"]
        if kind == "comm_open":
            states[comm] = dict(data["state"])
        elif kind == "comm_close":
            states.pop(comm)
        else:
            states[comm].update(data.get("state") or data["content"]["state"])
            if data["method"] == "custom":
                return {**show(messages), comm: {**show(messages)[comm], **states[comm]}}
    return states


def in_one(messages):
    return show(messages) and {"all": {}}


def a_list(messages):
    return list(show(messages).values())


def trips(messages):
    return {content["comm_id"]: content["data"]["state"] for _, content in messages}


def changes_the_messages(messages):
    states = {}
    for kind, content in messages:
        comm, data = content.pop("comm_id"), content.pop("data")
        if kind == "comm_open":
            states[comm] = data["state"]
        elif kind == "comm_close":
            states.pop(comm)
        elif data["method"] == "update":
            states[comm] |= data["state"]
    return states


def in_layers(messages):
    states = {}
    for kind, content in messages:
        comm, data = content["comm_id"], content["data"]
        if kind == "comm_close":
            del states[comm]
        elif kind == "comm_open" or data["method"] == "update":
            states[comm] = ChainMap(data["state"], states.get(comm, {}))
    return states


async def is_async_too(messages):
    return show(messages)


@pytest.mark.parametrize("right", [show, changes_the_messages, in_layers])
def test_the_state_that_the_messages_tell_is_right(right, messages):
    verdict = check_state(right, messages)
    assert verdict.right, verdict


def test_who_changes_the_messages_changes_no_later_verdict(messages):
    check_state(changes_the_messages, messages)
    assert not check_state(only_opens, messages).right


def test_messages_that_were_changed_before_are_to_be_recorded_again(messages):
    changed = copy.deepcopy(messages)
    changes_the_messages(changed)
    verdict = check_state(show, changed)
    assert not verdict.right and "records them again" in verdict.why, verdict


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda messages: None, "return a dictionary"),
        (is_async_too, "you return a coroutine"),
        (a_list, "return a dictionary"),
        (trips, "KeyError"),
        (in_one, "are not shown"),
        (never_closes, "it is gone"),
        (forgets_the_rest, "what has *changed*"),
        (only_opens, "later messages win"),
        (takes_custom_for_an_update, "shows 99"),
    ],
)
def test_another_state_is_refused_with_the_reason(wrong, says, messages):
    verdict = check_state(wrong, messages)
    assert not verdict.right and says in verdict.why, verdict
