"""A leash: a pipe through which nothing is ever sent. When its writing end closes, the kernel kills who is on it.

`launch` and `kernel` hand the reading end to their children. Programs that are started by other packages are led in by

    python -m labkit.leash [--sweep] FIFO PID MODULE ARGUMENTS...

which runs a module on the leash of a named pipe, if process PID is still its parent, which has that open for writing.
With --sweep another process waits for the end, too, and then removes the folder of the FIFO.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys

F_SETSIG = 10  # fcntl(2); the module fcntl has no name for it


def arm(leash: int, who: int) -> None:
    """Have the kernel send SIGKILL when the other end of a leash closes: O_ASYNC and F_SETSIG, fcntl(2).

    Args:
        leash: the reading end of a pipe. Its only change will be that the other end closes.
        who: a pid, or the negative number of a process group.
    """
    fcntl.fcntl(leash, fcntl.F_SETOWN, who)
    fcntl.fcntl(leash, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(leash, fcntl.F_SETFL, fcntl.fcntl(leash, fcntl.F_GETFL) | os.O_ASYNC)


def sweep_up(fifo: str) -> None:
    """Wait until the leash closes, and remove the folder it lies in, which nobody else is left to do; never returns."""
    import shutil
    import time

    os.setsid()  # or we would be killed with the others
    leash = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # or we would wait for ever for who has gone already: fifo(7)
    os.set_blocking(leash, True)
    os.read(leash, 1)
    time.sleep(0.2)
    shutil.rmtree(os.path.dirname(fifo), ignore_errors=True)
    os._exit(0)


def main() -> None:
    import runpy

    sweep = sys.argv[1] == "--sweep"
    fifo, parent, module, *arguments = sys.argv[1 + sweep :]
    if sweep and os.fork() == 0:
        sweep_up(fifo)
    leash = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # or others would be killed with us
    arm(leash, -os.getpgrp())
    if os.getppid() != int(parent):  # it went before the leash was armed
        sys.exit(f"process {parent}, which started this, has ended")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
