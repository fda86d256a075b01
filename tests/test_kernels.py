"""Real Jupyter kernels: cells, output, ends that travel, errors, and that nobody outlives the notebook."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager
from roles import eventually, gone, interrupt_soon

from labkit import KINDS, RemoteError, Trace, channel, kernel, kernels, launch
from labkit.kernels import KernelError
from labkit.report import run
from labkit.sync import Mutex

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def alice():
    """One kernel for all tests that do her no harm."""
    yield kernel("alice")
    kernels().stop()


@pytest.fixture
def bob():
    """A kernel of the test's own."""
    yield kernel("bob")
    kernel("bob").stop()


def until(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it never {what}"
        time.sleep(0.02)


# --- cells --------------------------------------------------------------------------------------------------


def test_a_cell_runs_in_a_process_with_its_own_memory(alice, capsys):
    alice.run("import os\nmine = 6 * 7\nprint(os.getpid())")
    alice.run("print(mine)")
    assert capsys.readouterr().out.split() == [str(alice.pid), "42"]
    assert alice.pid != os.getpid() and "mine" not in globals()


def test_output_appears_while_the_cell_runs(alice, capsys):
    tx, rx = channel("pipe")
    alice.push(rx=rx)
    cell = alice.run("print('one', flush=True); rx.receive(); print('two')", wait=False)
    seen = []
    until(lambda: seen.append(capsys.readouterr().out) or "one" in "".join(seen), "printed one")
    assert not cell.done and alice.state.startswith("busy for")
    tx.send(b"go on")
    cell.wait(60)
    tx.close()
    assert "".join(seen) + capsys.readouterr().out == "one\ntwo\n"


def test_a_flood_of_output_is_shown_to_the_last_line(bob, capfd):
    """Also while nobody here has time for it: ZeroMQ would drop what is above its high-water mark."""
    cell = bob.run("for number in range(8000): display(number)", wait=False)
    busy = time.monotonic() + 1.5
    while time.monotonic() < busy:
        sum(range(100_000))
    cell.wait(60)
    assert capfd.readouterr().out.split() == [str(number) for number in range(8000)]


def test_a_cell_is_text(alice):
    for code in (None, 5, b"1"):
        with pytest.raises(TypeError, match="a cell is text, not"):
            alice.run(code)
    alice.run("")
    assert alice.state == "idle"


def test_standard_error_and_results_are_shown_too(alice, capsys):
    alice.run("import sys; print('careful', file=sys.stderr); 1 + 1")
    shown = capsys.readouterr()
    assert shown.err == "careful\n" and shown.out == "2\n"


def test_an_error_comes_with_the_kernel_s_own_traceback(alice):
    with pytest.raises(KernelError, match=r"alice \(pid \d+\) raised: ZeroDivisionError: division by zero") as error:
        alice.run("def f():\n    return 1 / 0\nf()")
    assert "----> 2     return 1 / 0" in error.value.traceback
    assert isinstance(error.value, RemoteError)
    heading, *lines = error.value._render_traceback_()
    assert heading.startswith("alice (pid") and "\x1b[" in "".join(lines), "in colours, as the kernel shows it"


def test_a_busy_kernel_takes_no_second_cell_and_says_what_one_can_do(alice):
    tx, rx = channel("pipe")
    alice.push(rx=rx)
    cell = alice.run("rx.receive()", wait=False)
    for use in (lambda: alice.run("1"), lambda: alice.push(x=1), lambda: alice.pull("x")):
        with pytest.raises(KernelError, match=r"is busy for \d+ s with another cell.*await kernel.*interrupt"):
            use()
    with pytest.raises(TimeoutError, match="still runs after 0.01 s"):
        cell.wait(0.01)
    tx.send(b"go on")
    alice.wait(60)
    tx.close()
    assert alice.state == "idle"


def test_an_interrupted_cell_ends_and_the_kernel_lives_on(alice, capsys):
    cell = alice.run("import time\nprint('asleep', flush=True)\ntime.sleep(100)", wait=False)
    until(lambda: "asleep" in capsys.readouterr().out, "slept")
    alice.interrupt()
    with pytest.raises(KernelError, match="KeyboardInterrupt"):
        cell.wait(60)
    alice.run("print('well')")
    assert capsys.readouterr().out == "well\n"


def test_ctrl_c_while_we_wait_interrupts_the_kernel(alice, capsys):
    waiting = interrupt_soon(1.0)
    with pytest.raises(KeyboardInterrupt):
        waiting.start()
        alice.run("import time\ntime.sleep(100)")
    waiting.join()
    until(lambda: alice.state == "idle", "reacted")


def test_a_cell_can_be_awaited(alice):
    import asyncio

    tx, rx = channel("pipe")
    alice.push(rx=rx)

    async def other_things():
        for _ in range(4):
            await asyncio.sleep(0.01)
        tx.send(b"go on")

    async def two_things():
        cell = alice.run("rx.receive(); done = True", wait=False)
        others = asyncio.create_task(other_things())  # without which the cell does not end
        await cell
        await alice
        await others

    asyncio.run(two_things())
    tx.close()
    assert alice.pull("done") is True


def test_completion_is_the_kernel_s_own(alice):
    alice.run("a_long_name = 1")
    reply = alice.complete("a_long_", 7, timeout=60)  # the first time Jedi is loaded
    assert "a_long_name" in reply["matches"]


def test_kernels_are_listed_with_pid_and_state(alice):
    assert kernel("alice") is alice
    row = next(line for line in repr(kernels()).splitlines() if line.startswith("alice"))
    assert row.split()[1:3] == [str(alice.pid), "idle"]
    assert f"<td style='text-align:left'>{alice.pid}</td>" in kernels()._repr_html_()


# --- what travels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_every_mechanism_travel_and_are_gone_here(kind, alice):
    tx, rx = channel(kind)
    alice.push(tx=tx)
    assert tx.closed
    cell = alice.run("tx.send(b'from afar')\ntx.close()", wait=False)
    assert list(rx) == [b"from afar"]
    cell.wait(60)
    rx.close()

    tx, rx = channel(kind)
    alice.push(rx=rx)
    assert rx.closed
    cell = alice.run("got = list(rx)\nrx.close()", wait=False)
    tx.send(b"to her")
    tx.close()
    cell.wait(60)
    assert alice.pull("got") == [b"to her"]


def test_ends_inside_of_lists_travel_as_well_and_values_are_copied(alice):
    tx, rx = channel("pipe")
    values = [1, {"two": 2}]
    alice.push(values=values, ends={"out": [tx]}, square=lambda x: x * x)
    alice.run("values.append(square(3)); ends['out'][0].send(b'x'); ends['out'][0].close()")
    assert alice.pull("values") == [1, {"two": 2}, 9] and values == [1, {"two": 2}]
    assert list(rx) == [b"x"]
    rx.close()


def test_processes_meet_kernels_by_name(alice, a_name):
    from labkit import receiver

    rx = receiver("fifo", a_name, create=True)
    alice.run(f"from labkit import sender\ntx = sender('fifo', {a_name!r})\ntx.send(b'hello'); tx.close()")
    assert rx.receive() == b"hello"
    rx.close()


def test_a_trace_knows_kernels_and_processes_by_name(bob):
    with Trace() as trace:
        tx, rx = channel("unix_seqpacket", trace=trace)
        tx2, rx2 = channel("shm_ring", trace=trace)
        lock = trace.lock(Mutex(), "the lock")
        bob.push(rx=rx, tx=tx2, lock=lock)
        job = launch(lambda tx: tx.send(b"ball"), tx, name="ann")
        bob.run("ball = rx.receive()\nwith lock: tx.send(ball)")
        assert rx2.receive() == b"ball"
        job.wait()
        names = {process.name for process in trace.processes.values()}
        assert names == {"notebook", "bob", "ann"}
        messages = trace.messages()
        assert sorted(messages["receiver"]) == sorted([bob.pid, os.getpid()])
        assert trace.locks()[0].acquired == 1
        os.kill(bob.pid, signal.SIGKILL)
        until(lambda: trace.processes[bob.pid].ended == "killed by SIGKILL", "was told that bob was killed")
        rx2.close()
        lock.close()


def test_what_cannot_travel_is_named(alice):
    with pytest.raises(TypeError, match=r"numbers, a generator, cannot travel to another kernel.*Make it there"):
        alice.push(fine=1, numbers=(n for n in range(3)))
    with Trace() as trace, pytest.raises(TypeError, match="a trace stays in the process that made it"):
        alice.push(trace=trace)
    with pytest.raises(KernelError, match="cannot give nobody: NameError: name 'nobody' is not defined"):
        alice.pull("nobody")
    alice.run("numbers = (n for n in range(3))")
    with pytest.raises(KernelError, match="cannot give numbers: TypeError: cannot pickle"):
        alice.pull("numbers")
    tx, rx = channel("pipe")
    rx.close()
    tx.close()
    with pytest.raises(ValueError, match="this end is closed"):
        alice.push(tx=tx)
    assert alice.state == "idle"


def test_what_the_kernel_cannot_unpack_stays_ours(alice):
    class Picky:
        def __reduce__(self):
            return exec, ("raise OSError('not here')",)

    tx, rx = channel("pipe")
    before = len(os.listdir(f"/proc/{alice.pid}/fd"))
    with pytest.raises(KernelError, match="cannot take what it was handed: OSError: not here"):
        alice.push(first=Picky(), tx=tx)
    assert eventually(lambda: len(os.listdir(f"/proc/{alice.pid}/fd")) <= before), "descriptors that arrived are closed"
    assert not tx.closed
    alice.push(tx=tx)
    alice.run("tx.close()")
    assert list(rx) == []
    rx.close()


def test_a_kernel_that_does_not_answer_is_a_timeout_that_says_what_to_do(bob, monkeypatch):
    monkeypatch.setattr(sys.modules["labkit.kernels"], "START_TIMEOUT", 0.5)
    os.kill(bob.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError, match=r"does not give x: no answer within 0.5 s.*interrupt.*restart"):
        bob.pull("x")
    with pytest.raises(TimeoutError, match="does not take what it was handed"):
        bob.push(x=1)
    assert bob.complete("x", 1, timeout=0.1) == {}
    until(lambda: bob._requests == {}, "forgot the answers that nobody waits for")
    os.kill(bob.pid, signal.SIGCONT)


def test_ctrl_c_while_a_value_is_computed_ends_the_computing(bob):
    pressed = interrupt_soon(1.0)
    with pytest.raises(KeyboardInterrupt):
        pressed.start()
        bob.pull("__import__('time').sleep(1000)")
    pressed.join()
    assert bob.pull("6 * 7") == 42


def test_more_descriptors_than_one_message_takes_are_refused(alice):
    ends = [channel("pipe") for _ in range(253)]
    with pytest.raises(ValueError, match="one push takes 252 descriptors, not 253"):
        alice.push(ends=[tx for tx, _ in ends])
    for tx, rx in ends:
        tx.close()
        rx.close()


# --- kernels that do not start, or die ----------------------------------------------------------------------


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """Makes a kernel spec called broken, which starts what it is told to."""

    def make(*argv):
        folder = tmp_path / "kernels" / "broken"
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(
            json.dumps({"argv": [*argv, "{connection_file}"], "display_name": "Broken", "language": "python"})
        )
        monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
        return "broken"

    return make


def test_a_kernel_spec_that_nobody_knows_is_refused_with_those_there_are():
    with pytest.raises(KernelError, match="no kernel spec 'ruby'; there are: .*python3"):
        kernel("carol", "ruby")
    assert "carol" not in repr(kernels())


def test_a_kernel_whose_program_is_gone_says_so(spec):
    with pytest.raises(KernelError, match="starts /gone/bin/python, and there is no such program: was its environment"):
        kernel("carol", spec("/gone/bin/python"))


def test_a_kernel_in_a_bad_environment_shows_what_it_said(spec, capfd):
    with pytest.raises(KernelError, match="did not start: it exited 1") as error:
        kernel("carol", spec(sys.executable, "-c", "import a_package_that_was_removed"))
    assert "ModuleNotFoundError: No module named 'a_package_that_was_removed'" in str(error.value)
    assert "'broken'" in str(error.value)
    gc.collect()
    assert capfd.readouterr() == ("", ""), "all is said in the error"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"argv": [], "display_name": "x"}', '{"argv": 7}'])
def test_a_kernel_spec_that_cannot_be_read_is_named_with_its_place(spec, tmp_path, text):
    spec("whatever")
    (tmp_path / "kernels" / "broken" / "kernel.json").write_text(text)
    with pytest.raises(KernelError, match=r"'broken' cannot be used .*: see kernel.json in .*kernels/broken; `jupyter"):
        kernel("carol", "broken")


def test_a_kernel_that_never_answers_is_given_up(spec, monkeypatch):
    monkeypatch.setattr(sys.modules["labkit.kernels"], "START_TIMEOUT", 2.0)
    with pytest.raises(KernelError, match=r"there was no answer within 2 s(.|\n)*I sleep"):
        kernel("carol", spec("sh", "-c", "echo I sleep; exec sleep 1000"))  # a shell says so sooner than a Python


def test_who_waits_for_the_cell_of_a_killed_kernel_is_told(bob, capsys):
    cell = bob.run("import time; print('asleep', flush=True); time.sleep(100)", wait=False)
    until(lambda: "asleep" in capsys.readouterr().out, "slept")
    os.kill(bob.pid, signal.SIGKILL)
    with pytest.raises(KernelError, match="was killed by SIGKILL, and its cell did not end.*restart"):
        cell.wait(60)
    until(lambda: not bob.alive, "was found dead")
    for use in (lambda: bob.run("1"), lambda: bob.push(x=1), lambda: bob.pull("x")):
        with pytest.raises(KernelError, match="its variables are gone.*restart"):
            use()
    assert bob.complete("x", 1) == {}
    assert "killed by SIGKILL" in repr(kernels())
    new = bob.restart()
    new.run("1")
    assert new is kernel("bob") and new.pid != bob.pid


def test_a_kernel_that_ends_itself_is_told_from_one_that_was_killed(bob):
    with pytest.raises(KernelError, match="has exited 3, and its cell did not end"):
        bob.run("import os; os._exit(3)")


def test_a_kernel_that_ignores_all_is_killed_when_it_is_stopped(bob, capsys):
    bob.run(
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(99)",
        wait=False,
    )
    until(lambda: "deaf" in capsys.readouterr().out, "began")
    bob.stop()
    assert gone(bob.pid) and bob.status == "killed by SIGKILL"


def test_ends_of_a_stopped_kernel_are_closed(bob):
    tx, rx = channel("posix_mq")
    bob.push(tx=tx)
    bob.stop()
    assert list(rx) == []
    rx.close()


@pytest.mark.parametrize("name", ["", "two/words", 7])
def test_a_name_is_one_word(name):
    with pytest.raises((ValueError, TypeError), match="a name is"):
        kernel(name)


def test_one_name_is_one_kernel(bob, spec):
    with pytest.raises(ValueError, match="bob runs python3 already, not broken"):
        kernel("bob", spec("whatever"))


PARENT = """
import os, sys, time
from labkit import channel, kernel
bob = kernel("bob")
tx, rx = channel("pipe")
bob.push(tx=tx)
bob.run("import time, labkit; job = labkit.launch(time.sleep, 100); tx.send(str(job.pid).encode())")
child = int(rx.receive())
bob.run({code!r}, wait=False)
print(bob.pid, child, flush=True)
{end}
"""


@pytest.mark.parametrize("code", ["time.sleep(100)", "9 ** 9 ** 9"], ids=["asleep", "computing without a pause"])
@pytest.mark.parametrize(
    ("end", "number"), [("time.sleep(100)", signal.SIGKILL), ("sys.exit()", 0)], ids=["kill -9", "exit"]
)
def test_kernels_and_their_children_end_with_us(code, end, number, tmp_path):
    own = os.environ | {"TMPDIR": str(tmp_path)}
    script = PARENT.format(code=code, end=end)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=own) as parent:
        bob, child = map(int, parent.stdout.readline().split())
        if number:
            os.kill(parent.pid, number)
        assert parent.wait(60) == -number
    until(lambda: gone(bob) and gone(child), "ended")
    assert [path for path in tmp_path.rglob("*") if "kernel" in path.name] == []


# --- in a notebook ------------------------------------------------------------------------------------------


def played(tmp_path, *sources):
    """The cells after they have run in a notebook whose kernel is a real ipykernel; and which of them failed."""
    cells = [nbformat.v4.new_code_cell(source) for source in ("%load_ext labkit", *sources)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    failures = run(tmp_path / "test.ipynb", notebook, timeout=60)
    return notebook.cells[1:], failures


def text(cell):
    return "".join(one.get("text", "") or one.get("data", {}).get("text/plain", "") for one in cell.outputs)


def test_a_quote_that_is_not_closed_is_a_wrong_usage(tmp_path):
    cells, _ = played(tmp_path, "%%kernel alice 'tx\n1")
    assert text(cells[0]).startswith(
        "UsageError: %%kernel NAME [VARIABLE...] [--spec SPEC] [&], not %%kernel alice 'tx:"
    )


def test_a_cell_of_a_notebook_runs_in_another_kernel_and_shows_what_that_shows(tmp_path):
    cells, failures = played(
        tmp_path,
        "import os; print(os.getpid())",
        "%%kernel alice\nimport os\nprint(os.getpid())",
        "%%kernel alice\nfrom IPython.display import HTML\nHTML('<b>bold</b>')",
        "%%kernel alice\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);",
        "%%kernel alice\nimport ipywidgets\nipywidgets.IntSlider(7)",
        "%%kernel alice\nfrom IPython.display import display, clear_output\n"
        "handle = display('first', display_id=True)\nhandle.update('second')",
    )
    assert failures == []
    here, there, rich, figure, widget, updated = cells
    assert int(text(here)) != int(text(there))
    assert rich.outputs[0].data["text/html"] == "<b>bold</b>"
    assert "image/png" in figure.outputs[0].data
    (output,) = widget.outputs
    assert output.data["text/plain"].startswith("IntSlider(value=7") and len(output.data) == 1
    assert text(updated) == "'second'"


def test_a_failing_cell_of_another_kernel_fails_here_and_shows_its_traceback(tmp_path):
    cells, failures = played(tmp_path, "%%kernel alice\nx = 1\n1 / 0", "%%kernel alice\nprint(x)")
    assert len(failures) == 1 and "ZeroDivisionError: division by zero" in failures[0]
    (error,) = cells[0].outputs
    said = re.sub("\x1b\\[[0-9;]*m", "", "\n".join(error.traceback))
    assert "alice (pid" in said and "----> 2 1 / 0" in said and "labkit" not in said
    assert text(cells[1]) == "1\n"


def test_variables_are_handed_over_and_a_cell_in_the_background_shows_what_comes_later(tmp_path):
    cells, failures = played(
        tmp_path,
        "from labkit import channel, kernel\ntx, rx = channel('pipe')",
        "%%kernel alice rx &\nfor message in rx: print('got', message)",
        "%%kernel bob tx\nfor n in range(3): tx.send(b'%d' % n)\ntx.close()\nprint('sent')",
        "await kernel('alice')\nprint(tx.closed, rx.closed)",
    )
    assert failures == []
    assert "await kernel('alice') waits for it" in text(cells[1])
    assert "got b'0'\ngot b'1'\ngot b'2'\n" in text(cells[1])
    assert text(cells[2]) == "sent\n" and text(cells[3]) == "True True\n"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("%%kernel\n1", "NAME [VARIABLE...]"),
        ("%%kernel alice nobody\n1", "there is no variable 'nobody' here that could be handed to alice"),
        (
            "x = (n for n in ()); get_ipython().run_cell_magic('kernel', 'alice x', '1')",
            "x, a generator, cannot travel",
        ),
        ("%%kernel alice --spec ruby\n1", "no kernel spec 'ruby'; there are"),
    ],
)
def test_a_wrong_first_line_says_what_is_wrong(tmp_path, source, says):
    cells, _ = played(tmp_path, source)
    shown = json.dumps(cells[0].outputs)
    assert says in shown and "Traceback" not in shown


@pytest.fixture(scope="module")
def event_loop():
    """jupyter_client makes one for calls that block, and keeps it."""
    from jupyter_core.utils import ensure_event_loop

    yield ensure_event_loop()
    ensure_event_loop().close()


@pytest.fixture
def notebook(tmp_path, event_loop):
    """A kernel as a front end has it: the manager, which interrupts and restarts, and a client that runs cells."""
    manager = KernelManager(transport="ipc", ip=str(tmp_path / "k"), connection_file=str(tmp_path / "kernel.json"))
    manager.start_kernel()
    client = manager.client()
    client.start_channels(hb=False, stdin=False)
    client.wait_for_ready(60)
    client.execute("%load_ext labkit", reply=True, timeout=60)
    yield manager, client
    manager.shutdown_kernel(now=True)
    client.stop_channels()
    manager.context.destroy()


def shown(client, code, wanted):
    """Run a cell and wait until it has shown something."""
    number = client.execute(code)
    said = ""
    while wanted not in said:
        message = client.get_iopub_msg(timeout=60)
        if message["parent_header"]["msg_id"] == number:
            said += message["content"].get("text", "") or "\n".join(message["content"].get("traceback", []))
    return said


def state_of_alice(client) -> str:
    code, asked = "from labkit import kernel", {"state": "kernel('alice').state"}
    reply = client.execute(code, silent=True, user_expressions=asked, reply=True, timeout=60)["content"]
    return json.dumps(reply.get("user_expressions"))  # nothing when it was aborted with the cell that was stopped


BUSY = "%%kernel alice\nimport os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(100)"


def test_stopping_the_cell_interrupts_the_other_kernel(notebook):
    manager, client = notebook
    shown(client, BUSY, "pid")
    manager.interrupt_kernel()
    reply = client.get_shell_msg(timeout=60)["content"]
    assert reply["ename"] == "KeyboardInterrupt"
    assert "alice was interrupted" in reply["traceback"][0] and "kernels.py" not in "".join(reply["traceback"])
    until(lambda: "idle" in state_of_alice(client), "was interrupted")


def test_stopping_a_cell_that_awaits_interrupts_the_other_kernel(notebook):
    manager, client = notebook
    shown(client, BUSY.replace("alice", "alice &", 1), "pid")
    shown(client, "from labkit import kernel, kernels\nprint('waiting', flush=True); await kernel('alice')", "waiting")
    client.get_shell_msg(timeout=60)  # that of the cell which began alice's
    manager.interrupt_kernel()
    assert client.get_shell_msg(timeout=60)["content"]["status"] == "error"
    until(lambda: "idle" in state_of_alice(client), "was interrupted")


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_no_kernel_outlives_the_notebook(notebook, how):
    manager, client = notebook
    alice = int(re.search(r"pid (\d+)", shown(client, BUSY, "pid"))[1])
    if how == "restart":
        manager.restart_kernel()
    else:
        manager.signal_kernel(signal.SIGKILL)
    until(lambda: gone(alice), "ended")


def test_completion_in_a_cell_asks_the_other_kernel(notebook):
    _, client = notebook
    client.execute("%%kernel alice\nonly_hers = {'key_of_hers': 1}", reply=True, timeout=60)
    client.execute("only_ours = 1", reply=True, timeout=60)
    code = "%%kernel alice\nx = 1\nprint(only_"
    found = {}
    deadline = time.monotonic() + 60
    while not found.get("matches") and time.monotonic() < deadline:  # Jedi takes its time when it is loaded
        found = client.complete(code, reply=True, timeout=60)["content"]
    assert found["matches"] == ["only_hers"]
    assert code[found["cursor_start"] : found["cursor_end"]] == "only_"
    ours = client.complete("only_", reply=True, timeout=60)["content"]["matches"]
    assert "only_ours" in ours and "only_hers" not in ours
    assert "%%kernel" in client.complete("%%kern", reply=True, timeout=60)["content"]["matches"]
