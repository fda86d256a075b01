"""Kernels beside the notebook's own: `%%kernel alice` runs a cell in another Jupyter kernel, alice.

    %load_ext labkit                  from labkit import kernel, kernels

    %%kernel alice tx                 kernel("alice").push(tx=tx)
    tx.send(b"hello")                 kernel("alice").run('tx.send(b"hello")')

alice is started by jupyter_client when she is first used. What goes between us and her:

    this kernel                                                    alice, another process
    requests, replies, output     Jupyter's protocol, ZeroMQ over     runs cells, completes, is interrupted
                                  Unix sockets in a 0700 folder
    objects, pickled in a memfd,  a Unix socket pair that she    -->  take: variables of hers
    and descriptors (SCM_RIGHTS)  inherits
    the leash, a pipe             nothing ever goes through it        killed by the kernel when our end closes

As soon as all is connected the folder is removed: a kill -9 of us leaves neither her nor a file.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import dill
import zmq
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager, NoSuchKernel
from jupyter_client.manager import AsyncKernelManager

from labkit.channels.base import one_word
from labkit.folders import own_folder
from labkit.handing import MOST_DESCRIPTORS, give, packed, receive, send, take
from labkit.launch import Process, RemoteError, ends_in, follow_ipython
from labkit.leash import arm
from labkit.table import Table

START_TIMEOUT = 60.0
"""Seconds until a kernel must answer."""

GRACE = 3.0
"""Seconds that a kernel has to end by itself when it is stopped (ipykernel takes 2.2 when it has children), and to
react when it is interrupted."""

HASTE = "import sys; sys.stdout.flush_timeout = sys.stderr.flush_timeout = 0.1"
"""Run in a kernel before it ends. In ipykernel 7.4 a thread may flush to another that has ended, for 10 seconds."""

ROOM = "(lambda out: out.schedule(lambda: setattr(out.socket, 'sndhwm', 0)))(get_ipython().kernel.iopub_thread)"
"""Run in a kernel when it is ready, and done here as well. ZeroMQ drops what a flood of output has above its high-water
mark, also the "idle" that ends a cell; 0 is none, zmq_setsockopt(3)."""

_ASK_AGAIN = 0.1  # seconds until a kernel that starts is asked again whether it is there
_WAKE = 0.2
_MOST_PLACES = 100  # cells whose late output still finds its place: that of threads


class KernelError(RemoteError):
    """A kernel did not start, is busy or dead, or its cell failed; the text says what to do next."""

    lines: list[str] | None = None
    """The traceback as the kernel itself showed it, in colours."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: where labkit raised this is of no use to anybody."""
        return [str(self).partition("\n")[0] if self.lines else str(self), *(self.lines or [])]


class Run:
    """A cell that runs in a kernel. It is awaitable: `await run` lets a notebook's widgets work meanwhile."""

    def __init__(self, kernel: Kernel, outcome: concurrent.futures.Future[None]):
        self.kernel = kernel
        self.began = time.monotonic()
        self._outcome = outcome

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._outcome.done()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the cell has ended. Ctrl-C (interrupting this kernel) meanwhile interrupts the other.

        Raises:
            KernelError: the cell raised, or its kernel died.
            TimeoutError: it still runs after `timeout` seconds.
        """
        try:
            self._outcome.result(timeout)
        except concurrent.futures.CancelledError:
            raise self.kernel._dead("its cell did not end") from None
        except TimeoutError:
            name = self.kernel.name
            raise TimeoutError(
                f"the cell in {name} still runs after {timeout:g} s: wait longer, or kernel({name!r}).interrupt()"
            ) from None
        except KeyboardInterrupt as pressed:
            raise self._interrupted(pressed) from None

    def _interrupted(self, pressed: KeyboardInterrupt) -> KeyboardInterrupt:
        """Interrupt the kernel as well; returns what shows where that was, and not where we waited for it."""
        self.kernel.interrupt()
        name = self.kernel.name
        lines = [f"{name} was interrupted"]
        try:
            self._outcome.result(GRACE)
        except TimeoutError:
            lines = [f"{name} does not react to the interrupt; kernel({name!r}).stop() ends it"]
        except KernelError as error:
            lines += error.lines or [str(error)]
        pressed._render_traceback_ = lambda: lines  # type: ignore[attr-defined]
        return pressed

    def __await__(self) -> Generator[Any, None, None]:
        return self._finish().__await__()

    async def _finish(self) -> None:
        ended = asyncio.wrap_future(self._outcome)
        try:
            while not ended.done():  # ipykernel notices an interrupt only when its event loop wakes
                await asyncio.wait({ended}, timeout=_WAKE)
        except asyncio.CancelledError:
            self.kernel.interrupt()
            raise
        await ended

    def __repr__(self) -> str:
        what = "has ended" if self.done else f"runs; await kernel({self.kernel.name!r}) waits for it"
        return f"<cell in {self.kernel.name}, pid {self.kernel.pid}, {what}>"


class Kernel(Process):
    """A Jupyter kernel of ours, with a name: kernel("alice") makes it or finds it. It dies with us.

    It is awaitable: `await kernel("alice")` waits until her cell has ended.
    """

    def __init__(self, name: str, spec: str = NATIVE_KERNEL_NAME):
        super().__init__(name, 0)
        self.spec = spec
        self.last: Run | None = None
        """The cell that was run last."""
        self._requests: dict[str, _Request] = {}
        self._handing = threading.Lock()
        self._number = 0  # of what was handed over or back last
        self._stopping = False
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._live_in_thread, name=f"labkit kernel {name}", daemon=True)
        self._thread.start()
        try:
            self._started.result(START_TIMEOUT + 5)
        except BaseException:
            self.stop()
            raise

    # --- what one does with it -----------------------------------------------------------------

    def run(self, code: str, wait: bool = True) -> Run:
        """Run code as a cell; what it prints and shows appears here, as it comes.

        Args:
            code: what would be in the cell.
            wait: until it has ended; else the Run that is returned can be awaited.

        Raises:
            TypeError: the code is no text.
            KernelError: the code raised; or the kernel is busy, or dead.
        """
        if not isinstance(code, str):
            raise TypeError(f"a cell is text, not {type(code).__name__}: {self.name}.push(x=...) hands over a value")
        self._must_be_free()
        follow_ipython()
        sys.stdout.flush()
        self.last = Run(self, self._submit(self._execute(code, _Place(), show_errors=not wait)))
        if wait:
            self.last.wait()
        return self.last

    def push(self, **values: Any) -> None:
        """Make variables in the kernel. Endpoints among the values are given away, as by launch.

        Raises:
            TypeError: a value cannot travel to another process; the text says which and why.
            ValueError: an end is closed, or there are more descriptors than one message takes.
            KernelError: the kernel cannot unpack a value; or it is busy, or dead.
        """
        ends = list(ends_in(values))
        for end in ends:
            end._must_be_open()
        self._must_be_free()
        with self._handing, packed(values) as (payload, descriptors):
            if len(descriptors) > MOST_DESCRIPTORS:
                raise ValueError(f"one push takes {MOST_DESCRIPTORS} descriptors, not {len(descriptors)}: use several")
            self._number += 1
            send(self._hand, self._number, payload, descriptors)
            self._call("take what it was handed", take, self._hand_there, self._number)
            for end in ends:
                end.given_away()
        self.was_handed(values)

    def pull(self, name: str) -> Any:
        """A copy of the value that a variable, or any expression, has in the kernel.

        Raises:
            KernelError: there is no such variable, its value cannot travel, or the kernel is busy or dead.
        """
        self._must_be_free()
        with self._handing:
            self._number += 1
            self._call(f"give {name}", give, self._hand_there, self._number, name)
            payload, _ = receive(self._hand, self._number)
        return dill.loads(payload)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the cell that was run last has ended; raises what Run.wait raises."""
        if self.last:
            self.last.wait(timeout)

    def __await__(self) -> Generator[Any, None, None]:
        return self._finish().__await__()

    async def _finish(self) -> None:
        if self.last:
            await self.last

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the cell that runs, as the stop button does."""
        self._soon(lambda: asyncio.ensure_future(self._manager.interrupt_kernel()))

    def stop(self) -> None:
        """End the kernel: politely first, with SIGKILL if it still runs after some seconds. Its name is free then."""
        self._ask_to_stop()
        self._thread.join(START_TIMEOUT + GRACE)
        if _kernels.get(self.name) is self:
            del _kernels[self.name]

    def _ask_to_stop(self) -> None:
        self._stopping = True
        self._soon(lambda: self._stop_asked.set())

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, SIGKILL unless told otherwise: kill(2). After SIGKILL it returns when the kernel is dead."""
        super().kill(number)
        if number == signal.SIGKILL:
            self._ended.wait(GRACE)

    def restart(self) -> Kernel:
        """Stop it and start a new one of the same name, which knows nothing of what the old one knew."""
        self.stop()
        return kernel(self.name, self.spec)

    @property
    def state(self) -> str:
        """What it does: idle, busy and for how long, or how it ended."""
        if not self.alive:
            return self.status
        if self.last is None or self.last.done:
            return "idle"
        return f"busy for {time.monotonic() - self.last.began:.0f} s"

    def complete(self, code: str, position: int, timeout: float = 3.0) -> dict[str, Any]:
        """The kernel's own complete_reply; empty while it is busy: Jupyter's protocol, complete_request."""
        if not self.alive or (self.last and not self.last.done):
            return {}
        asked = self._submit(self._ask(self._shell, "complete_request", {"code": code, "cursor_pos": position}))
        with contextlib.suppress(TimeoutError, KernelError, concurrent.futures.CancelledError):
            return dict(asked.result(timeout))
        asked.cancel()
        return {}

    def __repr__(self) -> str:
        return f"<kernel {self.name}, pid {self.pid}, {self.state}>"

    def _must_be_free(self) -> None:
        if not self.alive:
            raise self._dead("its variables are gone")
        if self.last and not self.last.done:
            raise KernelError(
                f"{self.name} (pid {self.pid}) is {self.state} with another cell: wait for that with "
                f"kernel({self.name!r}).wait() or await kernel({self.name!r}), or end it with "
                f"kernel({self.name!r}).interrupt()"
            )

    def _dead(self, consequence: str) -> KernelError:
        verb = "was" if self.status.startswith("killed") else "has"
        return KernelError(
            f"{self.name} (pid {self.pid}) {verb} {self.status}, and {consequence}. "
            f"kernel({self.name!r}).restart() starts a new one",
            exitcode=self.exitcode,
        )

    def _call(self, what: str, f: Callable[..., None], *args: Any) -> None:
        """Have a function of labkit.handing called in the kernel."""
        code = f"from labkit.handing import {f.__name__} as _labkit; _labkit{args}; del _labkit"
        asked = self._submit(self._request_execution(code))
        try:
            reply = asked.result(START_TIMEOUT)
        except KeyboardInterrupt:
            self.interrupt()
            raise
        except TimeoutError:
            raise TimeoutError(
                f"{self.name} (pid {self.pid}) does not {what}: no answer within {START_TIMEOUT:g} s. "
                f"kernel({self.name!r}).interrupt() ends what it does, .restart() starts a new one"
            ) from None
        finally:
            asked.cancel()
        if reply["status"] != "ok":
            raise _failed(self, reply, f"{self.name} (pid {self.pid}) cannot {what}")

    def _submit(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        """Have a coroutine run by the thread that talks to the kernel."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # it has ended just now
            work.close()
            raise self._dead("its variables are gone") from None

    def _soon(self, call: Callable[[], Any]) -> None:
        """Have something done by the thread that talks to the kernel, if it still does."""
        with contextlib.suppress(RuntimeError, AttributeError):  # the loop has ended, or not begun
            self._loop.call_soon_threadsafe(call)

    # --- its life, in a thread of its own ------------------------------------------------------

    def _live_in_thread(self) -> None:
        exitcode: int | None = None
        try:
            exitcode = asyncio.run(self._live())
        except BaseException as reason:
            if not self._started.done():
                self._started.set_exception(reason)
        finally:
            self._has_ended(exitcode if exitcode is not None else -signal.SIGKILL)

    async def _live(self) -> int:
        """From its start to its end; returns its exit status."""
        self._loop = asyncio.get_running_loop()
        self._stop_asked, self._heard_iopub = asyncio.Event(), asyncio.Event()
        if self._stopping:
            self._stop_asked.set()
        async with contextlib.AsyncExitStack() as undo:
            folder = undo.enter_context(own_folder("kernel"))
            said = os.memfd_create("labkit-kernel-said", os.MFD_CLOEXEC)
            undo.callback(os.close, said)
            gone = await self._begin(undo, folder, said)
            listeners: list[asyncio.Future[Any]]
            listeners = [asyncio.ensure_future(self._listen(s)) for s in (self._shell, self._control, self._iopub)]
            asked: asyncio.Future[Any] = asyncio.ensure_future(self._stop_asked.wait())
            ready: asyncio.Future[Any] = asyncio.ensure_future(self._get_ready())
            await asyncio.wait({ready, gone, asked}, timeout=START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            why = f"there was no answer within {START_TIMEOUT:g} s"
            if ready.done():
                shutil.rmtree(folder, ignore_errors=True)
                self._started.set_result(None)
                await asyncio.wait({gone, asked}, return_when=asyncio.FIRST_COMPLETED)
            elif gone.done() or asked.done():
                why = ""
            exitcode = await self._end(gone)
            for task in (*listeners, asked, ready):
                task.cancel()
            self.exitcode = exitcode
            if not self._started.done():
                self._started.set_exception(self._did_not_start(why or f"it {self.status}", said))
            for request in self._requests.values():
                request.fail(self._dead("its cell did not end"))
            await asyncio.sleep(0)  # who waited for an answer is told
            return exitcode

    async def _end(self, gone: asyncio.Future[None]) -> int:
        """End it if it still runs; returns its exit status."""
        if not gone.done():
            for request in self._requests.values():
                request.show_errors = False  # we wanted it
            if self.last and not self.last.done:  # else an interrupt would disturb what is done at exit
                await self._manager.interrupt_kernel()
            if self.spec == NATIVE_KERNEL_NAME and self._started.done():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._request_execution(HASTE), 1.0)
            self._manager.session.send(self._control, "shutdown_request", {"restart": False})
            await asyncio.wait({gone}, timeout=GRACE)
        if not gone.done():
            await self._manager.signal_kernel(signal.SIGKILL)
            await gone
        exitcode = int(await self._provisioner.wait())
        await asyncio.sleep(0.05)  # its last words are on their way
        return exitcode

    async def _begin(self, undo: contextlib.AsyncExitStack, folder: str, said: int) -> asyncio.Future[None]:
        """Start the process and connect; returns what is done when the process has ended."""
        address = {"transport": "ipc", "ip": f"{folder}/k", "connection_file": f"{folder}/kernel.json"}
        manager = self._manager = AsyncKernelManager(kernel_name=self.spec, log=_quiet, **address)
        undo.callback(manager.context.destroy, linger=0)
        manager.context.setsockopt(zmq.RCVHWM, 0)  # as ROOM does there
        _must_be_startable(self.spec)
        self._hand, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._hand_there = there.fileno()
        undo.callback(self._hand.close)
        leash_there, leash = os.pipe()
        undo.callback(os.close, leash)
        with there, open(leash_there, "rb"):
            # A kernel of another language knows no such argument.
            own = ["--HistoryManager.enabled=False"] if self.spec == NATIVE_KERNEL_NAME else []
            await manager.start_kernel(
                extra_arguments=own, stdout=said, stderr=said, pass_fds=(self._hand_there, leash_there)
            )
            self._provisioner: Any = manager.provisioner  # of the process: jupyter_client.provisioning
            self.pid = int(getattr(self._provisioner, "pid", 0))
            arm(leash_there, self.pid)
        undo.push_async_callback(manager.cleanup_resources)
        gone = self._loop.create_future()
        pidfd = os.pidfd_open(self.pid)
        undo.callback(os.close, pidfd)

        def has_gone() -> None:
            self._loop.remove_reader(pidfd)
            gone.set_result(None)

        self._loop.add_reader(pidfd, has_gone)
        self._shell, self._control = manager.connect_shell(), manager.connect_control()
        self._iopub = manager.connect_iopub()
        return gone

    async def _get_ready(self) -> None:
        """Return when the kernel has answered, and all that we connect to has connected."""
        await asyncio.gather(*(self._ask(sock, "kernel_info_request", {}) for sock in (self._shell, self._control)))
        while not self._heard_iopub.is_set():  # what was said before we had subscribed is lost
            await self._ask(self._shell, "kernel_info_request", {})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._heard_iopub.wait(), _ASK_AGAIN)
        if self.spec == NATIVE_KERNEL_NAME:
            await self._request_execution(ROOM)

    def _did_not_start(self, why: str, said: int) -> KernelError:
        text = os.pread(said, 1 << 16, max(0, os.fstat(said).st_size - (1 << 16))).decode(errors="replace")
        words = "\n".join(text.strip().splitlines()[-20:])
        return KernelError(
            f"kernel {self.name} did not start: {why}. Its last words:\n\n{words or '(none)'}\n\n"
            f"It was started as the kernel spec {self.spec!r} says; `jupyter kernelspec list` tells where that is",
            exitcode=self.exitcode,
        )

    async def _listen(self, sock: Any) -> None:
        session = self._manager.session
        while True:
            frames = await sock.recv_multipart()
            if sock is self._iopub:
                self._heard_iopub.set()
            with contextlib.suppress(ValueError):  # not signed with our key
                self._heard(session.deserialize(session.feed_identities(frames)[1]))

    def _heard(self, message: dict[str, Any]) -> None:
        """Give a message to the request that it belongs to."""
        request = self._requests.get(message["parent_header"].get("msg_id", ""))
        if request is None:
            return
        kind, content = message["msg_type"], message["content"]
        if kind.endswith("_reply"):
            request.done(request.reply, content)
        elif kind == "status":
            if content["execution_state"] == "idle":
                request.done(request.idle, None)
        elif request.place and kind in SHOWN and (kind != "error" or request.show_errors):
            try:
                request.place.show(kind, content, message.get("buffers"))
            except Exception as reason:  # standard output is closed, for example
                request.fail(reason)

    async def _ask(
        self, sock: Any, kind: str, content: dict[str, Any], place: _Place | None = None, show_errors: bool = False
    ) -> dict[str, Any]:
        """Send a request and wait for its reply, and until the kernel has shown all that belongs to it."""
        sent = self._manager.session.send(sock, kind, content)
        number = sent["header"]["msg_id"]
        request = self._requests[number] = _Request(self._loop, place, show_errors)
        try:
            reply: dict[str, Any] = await request.reply
            if place:
                await request.idle
            return reply
        finally:
            if not place:
                del self._requests[number]
            while len(self._requests) > _MOST_PLACES:
                del self._requests[next(iter(self._requests))]

    async def _request_execution(
        self, code: str, place: _Place | None = None, show_errors: bool = False
    ) -> dict[str, Any]:
        silent = place is None
        content = {"code": code, "silent": silent, "store_history": not silent, "allow_stdin": False}
        content |= {"user_expressions": {}, "stop_on_error": True}
        return await self._ask(self._shell, "execute_request", content, place, show_errors)

    async def _execute(self, code: str, place: _Place, show_errors: bool) -> None:
        reply = await self._request_execution(code, place, show_errors)
        if reply["status"] != "ok":
            raise _failed(self, reply, f"{self.name} (pid {self.pid}) raised")


class _Request:
    """What was asked of a kernel, and waits for its reply."""

    def __init__(self, loop: asyncio.AbstractEventLoop, place: _Place | None, show_errors: bool):
        self.reply: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.idle: asyncio.Future[None] = loop.create_future()
        self.place = place
        self.show_errors = show_errors

    @staticmethod
    def done(future: asyncio.Future[Any], result: Any) -> None:
        if not future.done():
            future.set_result(result)

    def fail(self, reason: Exception) -> None:
        for future in (self.reply, self.idle):
            if not future.done():
                future.set_exception(reason)
                future.exception()  # it need not be asked for


def _failed(kernel: Kernel, reply: dict[str, Any], what: str) -> KernelError:
    """The error that a kernel replied with."""
    lines = list(reply.get("traceback") or [])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines))
    error = KernelError(f"{what}: {reply.get('ename', 'aborted')}: {reply.get('evalue', '')}\n\n{plain}", plain)
    error.lines = lines
    return error


SHOWN = ("stream", "display_data", "update_display_data", "execute_result", "clear_output", "error")


class _Place:
    """Where a kernel's output appears: under the cell that is running here now, or in the terminal."""

    def __init__(self) -> None:
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        self._kernel = getattr(shell, "kernel", None)
        self._cell = self._kernel.get_parent() if self._kernel else None

    def show(self, kind: str, content: dict[str, Any], buffers: Any = None) -> None:
        if kind == "execute_result":  # a cell has one result of its own, with its own number
            kind, content = "display_data", {key: content[key] for key in ("data", "metadata")}
        if "data" in content:  # a widget lives in its own kernel; here only its text can be shown
            data = {mime: value for mime, value in content["data"].items() if mime != WIDGET}
            content = content | {"data": data}
        if self._kernel:
            topic = f"kernel.{self._kernel.ident}.{kind}".encode()
            self._kernel.session.send(
                self._kernel.iopub_socket, kind, content, parent=self._cell, ident=topic, buffers=buffers or None
            )
        elif kind == "stream":
            print(content["text"], end="", flush=True, file=getattr(sys, content["name"]))
        elif kind == "error":
            print(*content["traceback"], sep="\n", flush=True, file=sys.stderr)
        elif "data" in content:
            print(content["data"].get("text/plain", ""), flush=True)


WIDGET = "application/vnd.jupyter.widget-view+json"


# --- all kernels -------------------------------------------------------------------------------

_kernels: dict[str, Kernel] = {}
_finding = threading.Lock()
_quiet = logging.getLogger("labkit.kernels")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False  # what goes wrong is raised, once


def kernel(name: str, spec: str | None = None) -> Kernel:
    """The kernel of this name, started now if there is none.

    Args:
        name: one word.
        spec: which of the kernels that Jupyter knows, one like our own unless given: `jupyter kernelspec list`.

    Raises:
        KernelError: it did not start; the text has what it said.
        ValueError: it is no name, or that kernel runs with another spec.
    """
    one_word(name)
    with _finding:
        found = _kernels.get(name)
        if found is None:
            found = _kernels[name] = Kernel(name, spec or NATIVE_KERNEL_NAME)
    if spec not in (None, found.spec):
        raise ValueError(f"{name} runs {found.spec} already, not {spec}: take another name, or stop it first")
    return found


def existing(name: str) -> Kernel | None:
    """The kernel of this name, if there is one."""
    return _kernels.get(name)


class Kernels(Table):
    """The kernels that were started here, also those that have died."""

    columns = ("kernel", "pid", "state", "spec")
    empty = "no kernel was started here; %%kernel alice starts one"

    def cells(self, row: Kernel) -> tuple[str, ...]:
        """The texts of one row."""
        return row.name, str(row.pid), row.state, row.spec

    def stop(self) -> None:
        """End them all."""
        for one in self:
            one._ask_to_stop()
        for one in self:
            one.stop()


def kernels() -> Kernels:
    """The kernels that were started here: name, pid and what each does. `kernels().stop()` ends them all."""
    return Kernels(_kernels.values())


atexit.register(lambda: kernels().stop())
os.register_at_fork(after_in_child=_kernels.clear)  # they are the parent's


def _must_be_startable(spec: str) -> None:
    """Raises KernelError when Jupyter knows no such spec, cannot read it, or what it would start is not there."""
    known = KernelSpecManager()
    try:
        program = known.get_kernel_spec(spec).argv[0]
    except NoSuchKernel:
        there = ", ".join(sorted(known.find_kernel_specs()))
        raise KernelError(
            f"Jupyter knows no kernel spec {spec!r}; there are: {there}. "
            "`python -m ipykernel install --user --name NAME` makes one of an environment"
        ) from None
    except Exception as reason:  # whatever may be wrong in a file that anybody wrote
        raise KernelError(
            f"the kernel spec {spec!r} cannot be used ({type(reason).__name__}: {reason}): see kernel.json in "
            f"{known.find_kernel_specs().get(spec)}; `jupyter kernelspec remove {spec}` forgets it"
        ) from None
    if not (shutil.which(program) or program.startswith("python")):
        raise KernelError(
            f"the kernel spec {spec!r} starts {program}, and there is no such program: was its environment removed? "
            f"`jupyter kernelspec remove {spec}` forgets it"
        )
