"""The checks of notebook 18-electron-ipc accept right solutions and refuse typical wrong ones with the reason."""

import asyncio
import threading
import time

import pytest

from labkit.electron import BrowserWindow
from labkit.exercises import electron
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


async def sends_first(event, number):
    for n in range(1, number + 1):
        event.reply("progress", n)
        await asyncio.sleep(0.05)
    event.reply("done")


def by_a_timer(event, number):
    loop = asyncio.get_running_loop()

    def step(n):
        event.sender.send("progress", n)
        if n < number:
            loop.call_later(0.05, step, n + 1)
        else:
            event.sender.send("done")

    loop.call_later(0.05, step, 1)


async def keeps_to_a_timetable(event, number):
    begin = time.monotonic()
    time.sleep(0.12)  # as on a busy machine: what was late is made up for
    for n in range(1, number + 1):
        await asyncio.sleep(max(0.0, begin + 0.05 * n - time.monotonic()))
        event.reply("progress", n)
    event.reply("done")


async def sleeps_in_threads(event, number):
    for n in range(1, number + 1):
        await asyncio.to_thread(time.sleep, 0.05)
        event.sender_frame.send("progress", n, number)
    event.reply("done")


async def takes_its_time(event, number):
    for n in range(1, number + 1):
        await asyncio.sleep(0.3)  # more than the page's patience, all together
        event.reply("progress", n)
    event.reply("done")


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


async def waits_once_for_all(event, number):
    await asyncio.sleep(0.05 * number)
    all_at_once(event, number)


def waits_for_a_thread(event, number):
    thread = threading.Thread(target=sleeps, args=(event, number))
    thread.start()
    thread.join()


async def counts_to_four(event, number):
    await count(event, 4)


latest = []


async def answers_who_asked_last(event, number):
    latest.append(event)
    for n in range(1, number + 1):
        await asyncio.sleep(0.05)
        latest[-1].reply("progress", n)
    latest[-1].reply("done")


async def forgets_to_count(event, number):
    n = 0
    while n < number:
        await asyncio.sleep(0.01)
        event.reply("progress", n + 1)


def forgets_to_count_and_to_wait(event, number):
    n = 0
    while n < number:
        event.reply("progress", n + 1)


async def waits_for_ever(event, number):
    await asyncio.Event().wait()


def raises(event, number):
    return 1 / 0


def exits(event, number):
    raise SystemExit(3)


RIGHT_LISTENERS = [
    count,
    in_a_thread,
    in_a_thread_that_begins_late,
    sends_first,
    by_a_timer,
    keeps_to_a_timetable,
    sleeps_in_threads,
]


@pytest.mark.parametrize("right", RIGHT_LISTENERS)
def test_who_tells_the_page_that_has_asked_is_right(right):
    verdict = check_progress(right)
    assert verdict.right, verdict


def test_who_is_slow_is_right_as_long_as_there_is_news():
    verdict = check_progress(takes_its_time, patience=0.8)
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
        (exits, "SystemExit"),
        (waits_once_for_all, "nothing else ran in main"),
        (counts_to_four, "two pages asked at the same time"),
        (answers_who_asked_last, "two pages asked at the same time"),
        (forgets_to_count, "it would still have gone on"),
        (forgets_to_count_and_to_wait, "it would still have gone on"),
        (waits_for_ever, "heard nothing"),
    ],
)
def test_who_does_not_is_told_why(wrong, says):
    never_says_done = wrong in (not_written, returns_it, never_done, waits_for_ever)
    verdict = check_progress(wrong, patience=0.8 if never_says_done else 20)
    assert not verdict.right and says in verdict.why, verdict


def test_a_listener_that_waits_for_its_thread_has_stopped_main():
    verdict = check_progress(waits_for_a_thread)
    assert not verdict.right and "nothing else ran in main" in verdict.why, verdict


def test_a_listener_that_never_returns_is_ended_and_main_goes_on():
    def never_returns(event, number):
        while number:
            pass

    verdict = check_progress(never_returns)
    assert not verdict.right and "main has stood still" in verdict.why and "has been ended" in verdict.why, verdict
    assert check_progress(count).right


# --- a subscription that ends -----------------------------------------------------------------------------------

RIGHT = """(callback) => {
    const listener = (_event, price) => callback(price);
    ipcRenderer.on('price', listener);
    return () => ipcRenderer.removeListener('price', listener);
};"""


FOR_ALL = """(() => {
    const callbacks = new Map();
    let count = 0;
    ipcRenderer.on('price', (_event, price) => [...callbacks.values()].forEach((callback) => callback(price)));
    return (callback) => {
        const number = count++;
        callbacks.set(number, callback);
        return () => callbacks.delete(number);
    };
})()"""

BY_CALLBACK = """(() => {
    const listeners = new Map();
    return (callback) => {
        listeners.set(callback, (_event, price) => callback(price));
        ipcRenderer.on('price', listeners.get(callback));
        return () => ipcRenderer.removeListener('price', listeners.get(callback));
    };
})()"""

SPLICED = """(() => {
    const callbacks = [];
    ipcRenderer.on('price', (_event, price) => callbacks.forEach((each) => each(price)));
    return (callback) => {
        const mine = (price) => callback(price);
        callbacks.push(mine);
        return () => callbacks.splice(callbacks.indexOf(mine), 1);
    };
})()"""

FLAG = """(callback) => {
    let on = true;
    ipcRenderer.on('price', (_event, price) => { if (on) callback(price); });
    return () => { on = false; };
}"""


@pytest.mark.parametrize(
    "right",
    [
        RIGHT,
        f"// mine\n{RIGHT} // it ends",
        f"\n{RIGHT.strip(';')}\n// it ends",
        RIGHT.replace("(callback) =>", "function onPrice(callback)"),
        RIGHT.replace("removeListener", "off"),
        FOR_ALL,
    ],
)
def test_a_subscription_that_ends_is_right(right):
    verdict = check_subscription(lambda: right)
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
        ("", "SyntaxError"),
        (f"const onPrice = {RIGHT}", "The text is that of a function"),
        ("7", "that of a number"),
        (RIGHT.replace("callback(price)", "callback(1)"), "called with [[1], [1], [1]"),
        (RIGHT.replace("ipcRenderer.on(", "ipcRenderer.once("), "called with [[1], [1]], not"),
        (BY_CALLBACK, "[4], [5]], not"),
        (SPLICED, "[2], [3]], not"),
        (FLAG, "3 listeners of theirs are still registered"),
    ],
)
def test_a_leak_is_refused_with_the_reason(wrong, says):
    verdict = check_subscription(lambda: wrong)
    assert not verdict.right and says in verdict.why, verdict


def test_a_function_that_raises_is_told_what_it_raised():
    verdict = check_subscription(lambda: 1 / 0)
    assert not verdict.right and "ZeroDivisionError" in verdict.why, verdict


def test_javascript_that_does_not_end_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(electron, "STUCK", 4.0)
    verdict = check_subscription(lambda: "(callback) => { while (true); }")
    assert not verdict.right and "does not end" in verdict.why, verdict
