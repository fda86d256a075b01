"""The checks of notebook 18-electron-ipc accept right solutions and refuse typical wrong ones with the reason."""

import asyncio
import threading
import time

import pytest

from labkit.electron import BrowserWindow
from labkit.exercises.electron import check_progress, check_subscription

# --- progress -------------------------------------------------------------------------------------------------


async def count(event, number):
    for n in range(1, number + 1):
        await asyncio.sleep(0.05)
        event.reply("progress", n)
    event.reply("done")


def in_a_thread(event, number):
    def work():
        for n in range(1, number + 1):
            time.sleep(0.05)
            event.reply("progress", n)
        event.reply("done")

    threading.Thread(target=work).start()


def in_a_thread_that_begins_late(event, number):
    in_a_thread(event, number)
    time.sleep(0.12)  # as on a busy machine


def not_written(event, number): ...


def returns_it(event, number):
    return list(range(1, number + 1))


async def from_nought(event, number):
    for n in range(number):
        await asyncio.sleep(0.05)
        event.reply("progress", n)
    event.reply("done")


async def never_done(event, number):
    for n in range(1, number + 1):
        await asyncio.sleep(0.05)
        event.reply("progress", n)


def sleeps(event, number):
    for n in range(1, number + 1):
        time.sleep(0.05)
        event.reply("progress", n)
    event.reply("done")


async def sleeps_async(event, number):
    sleeps(event, number)


def all_at_once(event, number):
    for n in range(1, number + 1):
        event.reply("progress", n)
    event.reply("done")


async def tells_everybody(event, number):
    for n in range(1, number + 1):
        await asyncio.sleep(0.05)
        for window in BrowserWindow.get_all_windows():
            window.web_contents.send("progress", n)
    event.reply("done")


def raises(event, number):
    return 1 / 0


@pytest.mark.parametrize("right", [count, in_a_thread, in_a_thread_that_begins_late])
def test_who_tells_the_page_that_has_asked_is_right(right):
    verdict = check_progress(right)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (not_written, "heard nothing"),
        (returns_it, "returns goes nowhere"),
        (from_nought, "heard [0, 1, 2, 3, 'done']"),
        (never_done, "still waits for 'done'"),
        (sleeps, "nothing else ran in main"),
        (sleeps_async, "nothing else ran in main"),
        (all_at_once, "A step takes 50 ms"),
        (tells_everybody, "that did not ask"),
        (raises, "ZeroDivisionError"),
    ],
)
def test_who_does_not_is_told_why(wrong, says):
    never_says_done = wrong in (not_written, returns_it, never_done, raises)
    verdict = check_progress(wrong, patience=0.8 if never_says_done else 20)
    assert not verdict.right and says in verdict.why, verdict


# --- a subscription that ends -----------------------------------------------------------------------------------

RIGHT = """(callback) => {
    const listener = (_event, price) => callback(price);
    ipcRenderer.on('price', listener);
    return () => ipcRenderer.removeListener('price', listener);
};"""


def test_a_subscription_that_ends_is_right():
    verdict = check_subscription(lambda: RIGHT)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (None, "as a string"),
        ("(callback) => {", "SyntaxError"),
        ("(callback) => ipcRenderer.off('price', callback)", "was not called"),
        ("(callback) => { ipcRenderer.on('price', callback); }", "got the event"),
        ("(callback) => { ipcRenderer.on('price', () => callback()); }", "call it with the price"),
        ("(callback) => { ipcRenderer.on('price', (_e, price) => callback(price)); }", "cannot stop listening"),
        (RIGHT.replace("removeListener('price', listener)", "removeListener('price', callback)"), "*registered*"),
        (RIGHT.replace("removeListener('price', listener)", "removeAllListeners('price')"), "somebody else"),
    ],
)
def test_a_leak_is_refused_with_the_reason(wrong, says):
    verdict = check_subscription(lambda: wrong)
    assert not verdict.right and says in verdict.why, verdict
