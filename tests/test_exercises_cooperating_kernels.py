"""The checks of notebook 13-cooperating-kernels accept what is right and refuse what is wrong with the reason."""

import pytest

from labkit import channel
from labkit.exercises.cooperating_kernels import check_player, check_ring

# --- a ring of three ----------------------------------------------------------------------------------------


def ring(players, step=1):
    channels = [channel("pipe") for _ in players]
    for number, player in enumerate(players):
        player.push(rx=channels[number][1], tx=channels[(number + step) % len(players)][0])


def not_written(players): ...


def the_other_way(players):
    ring(players, step=2)


def each_to_itself(players):
    ring(players, step=0)


def not_closed(players):
    channels = [channel("pipe") for _ in range(len(players) + 1)]
    for number, player in enumerate(players):
        player.push(rx=channels[number][1], tx=channels[number + 1][0])
    not_closed.kept = channels  # the ends that nobody has


def wrong_way_round(players):
    for player in players:
        tx, rx = channel("pipe")
        player.push(rx=tx, tx=rx)


def closes(players):
    for player in players:
        (tx, _), (_, rx) = channel("pipe"), channel("pipe")
        player.push(rx=rx, tx=tx)


def hands_one_end_to_all(players):
    tx, rx = channel("pipe")
    for player in players:
        player.push(rx=rx, tx=tx)


def test_a_ring_is_accepted():
    assert check_ring(ring).right


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (not_written, "ann has no rx and no tx"),
        (the_other_way, "the ball went ann → cat → ben → ann, and not ann → ben → cat → ann"),
        (each_to_itself, "the ball never left ann"),
        (not_closed, "no ball came to ann within 5 s"),
        (wrong_way_round, "ann has rx and tx the wrong way round"),
        (closes, "found nobody at the other side"),
        (hands_one_end_to_all, "ValueError: this end is closed"),
    ],
)
def test_what_is_no_ring_is_refused_with_the_reason(wrong, says):
    verdict = check_ring(wrong)
    assert not verdict.right and says in verdict.why
    for end in (end for ends in getattr(wrong, "kept", ()) for end in ends):
        end.close()


# --- an honest score ----------------------------------------------------------------------------------------


def player(tx, rx):
    score = 0
    try:
        while True:
            tx.send(b"ball")
            rx.receive()
            score += 1
    except EOFError:
        return score


def counts_what_it_sent(tx, rx):
    score = 0
    try:
        while True:
            tx.send(b"ball")
            score += 1
            rx.receive()
    except EOFError:
        return score


def does_not_catch(tx, rx):
    score = 0
    while True:
        tx.send(b"ball")
        rx.receive()
        score += 1


def catches_and_goes_on(tx, rx):
    while True:
        try:
            tx.send(b"ball")
            rx.receive()
        except EOFError:
            pass


def guesses(tx, rx):
    return 77


def misspells(tx, rx):
    return tx.snd(b"ball")


def test_an_honest_score_is_accepted():
    assert check_player(player).right


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (not_written, "your function raised TypeError"),
        (lambda tx, rx: None, "returns nothing"),
        (counts_what_it_sent, "one was sent, and ben died with it"),
        (does_not_catch, "Catch EOFError"),
        (catches_and_goes_on, "still runs after 10 s"),
        (guesses, "you counted 77"),
        (misspells, "AttributeError"),
    ],
)
def test_a_wrong_score_is_refused_with_the_reason(wrong, says):
    verdict = check_player(wrong)
    assert not verdict.right and says in verdict.why
