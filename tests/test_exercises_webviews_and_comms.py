"""The checks of notebook 20-webviews-and-comms accept right solutions and refuse typical wrong ones with the reason."""

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


def not_written(comm, question): ...


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
        (not_written, "nothing was sent"),
        (returns_it, "returns goes nowhere"),
        (without_a_number, "has no id"),
        (with_a_number_of_its_own, "another question's id"),
        (raises, "waits for ever"),
        (only_the_text, "not {'id': 9, 'error': 'ZeroDivisionError"),
        (is_silent_about_unknown_ones, "'erase', 'args': []}, and nothing was sent"),
        (twice, "One answer for each question"),
        (eval("lambda comm, question: None"), "write it with def"),
    ],
)
def test_an_answer_is_judged_with_the_reason(given, says):
    verdict = check_answer(given)
    assert verdict.right == (given is answer) and says in verdict.why, verdict


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


def test_the_state_that_the_messages_tell_is_right(messages):
    assert check_state(show, messages).right


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda messages: None, "return a dictionary"),
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
