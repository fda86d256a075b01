"""The checks of notebook 06-sockets accept right solutions and refuse typical wrong ones with the right reason."""

import re
import selectors
import threading

import pytest
import roles

from labkit.exercises import sockets
from labkit.exercises.sockets import check_receive_exactly, check_serve


@pytest.fixture(autouse=True)
def less_patience(monkeypatch):
    monkeypatch.setattr(sockets, "PATIENCE", roles.patience(2.0))


# --- receive_exactly ----------------------------------------------------------------------------------------


def right(connection, size):
    pieces = []
    while size:
        piece = connection.recv(min(size, 65536))
        if not piece:
            raise EOFError("the other side has closed half-way")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def right_into_a_buffer(connection, size):
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        received = connection.recv_into(view)
        if received == 0:
            raise EOFError
        view = view[received:]
    return bytes(buffer)


def empty(connection, size): ...


def one_recv(connection, size):
    return connection.recv(size)


def takes_too_much(connection, size):
    received = b""
    while len(received) < size:
        piece = connection.recv(65536)
        if not piece:
            raise EOFError
        received += piece
    return received[:size]


def returns_too_much(connection, size):
    received = b""
    while len(received) < size:
        piece = connection.recv(65536)
        if not piece:
            raise EOFError
        received += piece
    return received


def never_sees_the_end(connection, size):
    received = b""
    while len(received) < size:
        received += connection.recv(size - len(received))
    return received


def returns_half_at_the_end(connection, size):
    received = b""
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            break
        received += piece
    return received


def until_the_end(connection, size):
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def as_text(connection, size):
    return right(connection, size).decode("latin-1")


def a_list(connection, size):
    return [right(connection, size)]


@pytest.mark.parametrize("solution", [right, right_into_a_buffer])
def test_a_right_solution_is_accepted(solution):
    verdict = check_receive_exactly(solution)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        (empty, "returns nothing yet"),
        (one_recv, "may be a part"),
        (takes_too_much, "took more than it was asked for|an earlier call took some"),
        (returns_too_much, "ask recv for no more"),
        (never_sees_the_end, "gives it for ever"),
        (returns_half_at_the_end, "as if all was well"),
        (until_the_end, "ask recv for no more"),
        (as_text, "you return text"),
        (a_list, "list"),
    ],
)
def test_a_wrong_solution_is_refused_with_its_reason(solution, reason):
    verdict = check_receive_exactly(solution)
    assert not verdict.right
    assert re.search(reason, verdict.why), verdict.why


# --- serve --------------------------------------------------------------------------------------------------


def serve_with_select(listening, clients):
    selector = selectors.DefaultSelector()
    selector.register(listening, selectors.EVENT_READ)
    while clients:
        for key, _ in selector.select():
            if key.fileobj is listening:
                selector.register(listening.accept()[0], selectors.EVENT_READ)
            elif said := key.fileobj.recv(65536):
                key.fileobj.sendall(said)
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                clients -= 1


def serve_with_threads(listening, clients):
    def echo(connection):
        with connection:
            while said := connection.recv(65536):
                connection.sendall(said)

    threads = []
    for _ in range(clients):
        threads.append(threading.Thread(target=echo, args=(listening.accept()[0],)))
        threads[-1].start()
    for thread in threads:
        thread.join()


def serve_nobody(listening, clients): ...


def serve_one_after_the_other(listening, clients):
    for _ in range(clients):
        connection, _ = listening.accept()
        with connection:
            while said := connection.recv(65536):
                connection.sendall(said)


def serve_one_only(listening, clients):
    def echo(connection):
        with connection:
            while said := connection.recv(65536):
                connection.sendall(said)

    for _ in range(2):
        threading.Thread(target=echo, args=(listening.accept()[0],), daemon=True).start()


def serve_one_message_each(listening, clients):
    def echo(connection):
        with connection:
            connection.sendall(connection.recv(65536))

    threads = []
    for _ in range(clients):
        threads.append(threading.Thread(target=echo, args=(listening.accept()[0],), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()


def serve_for_ever(listening, clients):
    selector = selectors.DefaultSelector()
    selector.register(listening, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listening:
                selector.register(listening.accept()[0], selectors.EVENT_READ)
            elif said := key.fileobj.recv(65536):
                key.fileobj.sendall(said)
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()


def serve_without_sleeping(listening, clients):
    listening.setblocking(False)
    connections = []
    while clients:
        try:
            connections.append(listening.accept()[0])
            connections[-1].setblocking(False)
        except BlockingIOError:
            pass
        for connection in list(connections):
            try:
                said = connection.recv(65536)
            except BlockingIOError:
                continue
            if said:
                connection.sendall(said)
            else:
                connections.remove(connection)
                clients -= 1


def serve_to_all(listening, clients):
    selector, connections = selectors.DefaultSelector(), []
    selector.register(listening, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listening:
                connections.append(listening.accept()[0])
                selector.register(connections[-1], selectors.EVENT_READ)
            else:
                said = key.fileobj.recv(65536)
                for connection in connections:
                    connection.sendall(said)


def serve_in_capitals(listening, clients):
    def echo(connection):
        while said := connection.recv(65536):
            connection.sendall(said.upper())

    for _ in range(clients):
        threading.Thread(target=echo, args=(listening.accept()[0],), daemon=True).start()


@pytest.mark.parametrize("solution", [serve_with_select, serve_with_threads])
def test_a_right_server_is_accepted(solution):
    verdict = check_serve(solution)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        (serve_nobody, "body still empty"),
        (serve_one_after_the_other, "while client 1 is connected and silent"),
        (serve_one_only, "not all 3 clients"),
        (serve_one_message_each, "closes the connection"),
        (serve_for_ever, "has not returned"),
        (serve_without_sleeping, "processor time"),
        (serve_to_all, "an echo is the same bytes"),
        (serve_in_capitals, "an echo is the same bytes"),
    ],
)
def test_a_wrong_server_is_refused_with_its_reason(solution, reason):
    verdict = check_serve(solution)
    assert not verdict.right
    assert reason in verdict.why, verdict.why
