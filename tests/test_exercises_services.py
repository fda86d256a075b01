"""The checks of notebook 15-services accept right solutions and refuse typical wrong ones with the reason."""

from pathlib import Path

import pytest

from labkit.exercises.services import check_deposit, check_rain

DATA = str(Path(__file__).parents[1] / "data" / "weather-jfk-2013.csv")

ADD = "update account set balance = balance + ?"


def deposit(db, number, amount):
    with db:
        if db.execute("insert or ignore into seen values (?)", (number,)).rowcount:
            db.execute(ADD, (amount,))


def looks_first(db, number, amount):
    with db:
        db.execute("begin immediate")
        if not db.execute("select * from seen where number = ?", (number,)).fetchone():
            db.execute(ADD, (amount,))
            db.execute("insert into seen values (?)", (number,))


def does_nothing(db, number, amount): ...


def never_looks(db, number, amount):
    with db:
        db.execute(ADD, (amount,))


remembered = set()


def remembers_in_the_process(db, number, amount):
    if number not in remembered:
        remembered.add(number)
        with db:
            db.execute(ADD, (amount,))


def counts_and_then_marks(db, number, amount):
    if not db.execute("select * from seen where number = ?", (number,)).fetchone():
        with db:
            db.execute(ADD, (amount,))
        with db:
            db.execute("insert into seen values (?)", (number,))


def marks_and_then_counts(db, number, amount):
    with db:
        new = db.execute("insert or ignore into seen values (?)", (number,)).rowcount
    if new:
        with db:
            db.execute(ADD, (amount,))


def forgets_to_commit(db, number, amount):
    db.execute(ADD, (amount,))


def does_not_expect_it_twice(db, number, amount):
    with db:
        db.execute("insert into seen values (?)", (number,))
        db.execute(ADD, (amount,))


def never_ends(db, number, amount):
    while True:
        pass


@pytest.mark.parametrize("right", [deposit, looks_first])
def test_a_deposit_in_one_transaction_is_right(right):
    assert check_deposit(right).right


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (does_nothing, "the balance is 0"),
        (never_looks, "came again to a new process"),
        (remembers_in_the_process, "What a process remembers dies with it"),
        (counts_and_then_marks, "was counted was not yet seen: both belong into one transaction"),
        (marks_and_then_counts, "marked as seen, and not yet counted"),
        (forgets_to_commit, "`with db:` commits"),
        (does_not_expect_it_twice, "UNIQUE constraint failed"),
    ],
)
def test_a_deposit_that_is_lost_or_counts_twice_is_refused_with_the_reason(wrong, says):
    verdict = check_deposit(wrong)
    assert not verdict.right and says in verdict.why


def test_a_deposit_that_never_ends_is_given_up_and_ended(monkeypatch):
    monkeypatch.setattr("labkit.exercises.services.PATIENCE", 1.0)
    assert "had not returned after 1 seconds" in check_deposit(never_ends).why


def test_what_cannot_be_sent_to_a_process_is_refused_with_the_reason():
    words = (word for word in "abc")
    assert "cannot be sent to another process" in check_deposit(lambda db, number, amount: next(words)).why
    assert "cannot be sent to another process" in check_rain(lambda state, record: next(words), DATA).why


def rain(state, record):
    if record is None:
        yield {"hours": state.get("longest", 0)}
    elif float(record["precip"]) > 0:
        state["now"] = state.get("now", 0) + 1
        state["longest"] = max(state["now"], state.get("longest", 0))
    else:
        state["now"] = 0


outside = {"now": 0, "longest": 0}


def keeps_it_outside(state, record):
    if record is None:
        yield {"hours": outside["longest"]}
    elif float(record["precip"]) > 0:
        outside["now"] += 1
        outside["longest"] = max(outside["now"], outside["longest"])
    else:
        outside["now"] = 0


def counts_all_rain(state, record):
    if record is None:
        yield {"hours": state["n"]}
    else:
        state["n"] = state.get("n", 0) + (float(record["precip"]) > 0)


def forgets_the_end(state, record):
    state["n"] = state.get("n", 0) + (float(record["precip"]) > 0)
    return ()


def yields_each_hour(state, record):
    if record:
        yield {"hours": 1}


def expects_a_state(state, record):
    state["n"] += 1
    yield {"hours": state["n"]}


def keeps_a_set(state, record):
    state["hours"] = {1, 2}
    return ()


def does_nothing_at_all(state, record): ...


def returns_it(state, record):
    return next(iter(rain(state, record)), None)


def test_a_service_with_all_in_its_state_is_right():
    assert check_rain(rain, DATA).right
    assert check_rain(returns_it, DATA).right


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (keeps_it_outside, "outside of `state` dies with the process"),
        (counts_all_rain, "all the hours with rain"),
        (forgets_the_end, "At the end record is None"),
        (yields_each_hour, "yields 200 records: one"),
        (expects_a_state, "an empty dictionary"),
        (keeps_a_set, "kept as JSON"),
        (does_nothing_at_all, "yields nothing"),
    ],
)
def test_a_service_that_forgets_is_refused_with_the_reason(wrong, says):
    verdict = check_rain(wrong, DATA)
    assert not verdict.right and says in verdict.why
