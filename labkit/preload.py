"""Imported once by the forkserver, so that every child starts with Numba's compiled code already in its memory."""

import atexit
import importlib
import time

import labkit.launch
from labkit.channels import KINDS, notes
from labkit.channels.call_entry import call_entries
from labkit.channels.signal_entry import handler, signal_entries
from labkit.lockfree.bells_entry import bell_functions
from labkit.lockfree.broadcast_queue import broadcast_entries, broadcast_functions
from labkit.lockfree.mpmc_queue import mpmc_entries, mpmc_functions
from labkit.lockfree.objects_entry import objects_entries, objects_functions
from labkit.lockfree.spsc_queue import spsc_entries, spsc_functions
from labkit.trace_entry import trace_entries, trace_functions

for module in KINDS.values():
    importlib.import_module(module)
for compiled in (
    bell_functions,
    broadcast_entries,
    broadcast_functions,
    call_entries,
    handler,
    mpmc_entries,
    mpmc_functions,
    objects_entries,
    objects_functions,
    signal_entries,
    spsc_entries,
    spsc_functions,
    trace_entries,
    trace_functions,
):
    compiled()


@atexit.register
def _last_sweep() -> None:
    """Remove the System V objects of a process that was killed, which nothing else notices.

    The forkserver lives until whoever started it has gone, killed or not; its children, which leave without this
    (os._exit), are killed in the same moment and may take another to be gone: seconds, on a busy machine.
    """
    for pause in (0.0, 0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0):
        time.sleep(pause)
        if not notes.sweep():
            return
