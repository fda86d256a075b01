"""The checks of notebook 13-cooperating-kernels accept what is right and refuse what is wrong with the reason."""

import itertools
import threading
import time

import pytest

from labkit import channel, kernels
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


def closes_the_list_as_well(players):
    players.append(players[0])
    for left, right in itertools.pairwise(players):
        tx, rx = channel("shm_ring")
        left.push(tx=tx)
        right.push(rx=rx)


def takes_them_out_one_by_one(players):
    first = left = players.pop(0)
    while players:
        (tx, rx), right = channel("unix_seqpacket"), players.pop(0)
        left.push(tx=tx, name=left.name)
        right.push(rx=rx)
        left = right
    tx, rx = channel("posix_mq")
    left.push(tx=tx)
    first.push(rx=rx)


def kills_one(players):
    ring(players)
    players[1].kill()


def closes_an_end(players):
    ring(players)
    players[0].run("tx.close()")


def has_them_play(players):
    ring(players)
    for player in players[1:]:
        player.run("tx.send(rx.receive(timeout=None))", wait=False)


def hands_over_both_ends(players):
    for player in players:
        player.push(rx=channel("pipe"), tx=channel("pipe"))


def sends_something_before(players):
    channels = [channel("pipe") for _ in players]
    channels[0][0].send(b"\xff")
    for number, player in enumerate(players):
        player.push(rx=channels[number][1], tx=channels[(number + 1) % len(players)][0])


def raises_without_a_word(players):
    raise NotImplementedError


@pytest.mark.parametrize("right", [ring, closes_the_list_as_well, takes_them_out_one_by_one])
def test_a_ring_is_accepted(right):
    verdict = check_ring(right)
    assert verdict.right, verdict
    assert not kernels()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (not_written, "ann has no rx and no tx"),
        (the_other_way, "the ball went ann → cat → ben → ann, and not ann → ben → cat → ann"),
        (each_to_itself, "the ball never left ann"),
        (not_closed, "The ring is to be closed"),
        (wrong_way_round, "ann has rx and tx the wrong way round"),
        (closes, "found nobody at the other side"),
        (hands_one_end_to_all, "ValueError: this end is closed"),
        (kills_one, "ben (pid "),
        (closes_an_end, "ann, who has the rx and tx of your function, raised “ValueError: this end is closed"),
        (has_them_play, "the check has the players play"),
        (hands_over_both_ends, "what ann has as tx, a tuple, is no end of a channel"),
        (sends_something_before, "the ball went "),
        (raises_without_a_word, "your function raised NotImplementedError"),
    ],
)
def test_what_is_no_ring_is_refused_with_the_reason(wrong, says):
    verdict = check_ring(wrong)
    assert not verdict.right and says in verdict.why, verdict
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


def in_a_for_loop(tx, rx):
    score = 0
    tx.send(b"ball")
    for _ in rx:
        score += 1
        try:
            tx.send(b"another ball")
        except EOFError:
            break
    return score


def in_a_thread_and_closes(tx, rx):
    came_back = []

    def play():
        with tx, rx:
            try:
                while True:
                    tx.send(b"ball")
                    came_back.append(rx.receive())
            except EOFError:
                pass

    playing = threading.Thread(target=play)
    playing.start()
    playing.join()
    return len(came_back)


def looks_again_and_again(tx, rx):
    score, sent = 0, False
    while True:
        try:
            if not sent:
                tx.send(b"ball")
            sent = True
            rx.receive(timeout=0.01)
        except TimeoutError:
            continue
        except EOFError:
            return score
        score, sent = score + 1, False


def catches_only_what_receive_raises(tx, rx):
    score = 0
    while True:
        tx.send(b"ball")
        try:
            rx.receive()
        except EOFError:
            return score
        score += 1


def gives_up_after_a_second(tx, rx):
    score = 0
    try:
        while True:
            begin = time.monotonic()
            tx.send(b"ball")
            rx.receive()
            if time.monotonic() - begin > 1:
                return score
            score += 1
    except EOFError:
        return score


def waits_before_it_sends(tx, rx):
    rx.receive(timeout=None)


@pytest.mark.parametrize("right", [player, in_a_for_loop, in_a_thread_and_closes, looks_again_and_again])
def test_an_honest_score_is_accepted(right):
    verdict = check_player(right)
    assert verdict.right, verdict


def test_a_lucky_guess_is_not_accepted(monkeypatch):
    monkeypatch.setattr("random.randrange", lambda *_: 7)
    verdict = check_player(lambda tx, rx: 7)
    assert not verdict.right and "ben, who was to have 8 balls, has had 0: play until" in verdict.why


def test_who_takes_a_slow_side_for_one_that_has_gone_is_refused():
    assert not check_player(gives_up_after_a_second).right


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (not_written, "your function raised TypeError"),
        (lambda tx, rx: None, "returns nothing"),
        (counts_what_it_sent, "one was sent, and ben died with it"),
        (does_not_catch, "Catch EOFError"),
        (catches_and_goes_on, "s and more after ben was killed"),
        (guesses, "you counted 77, and ben, who was to have "),
        (waits_before_it_sends, "send the ball first"),
        (catches_only_what_receive_raises, "send() may be the one that says so"),
        (misspells, "AttributeError"),
    ],
)
def test_a_wrong_score_is_refused_with_the_reason(wrong, says):
    verdict = check_player(wrong)
    assert not verdict.right and says in verdict.why, verdict
