"""Imported once by the forkserver, so that every child starts with Numba's compiled code already in its memory."""

import importlib

import labkit.launch
from labkit.channels import KINDS
from labkit.channels.call_entry import call_entries
from labkit.channels.signal_entry import handler, signal_entries
from labkit.lockfree.spsc_entry import ring_entries, ring_functions
from labkit.trace_entry import trace_entries

for module in KINDS.values():
    importlib.import_module(module)
for compiled in (call_entries, handler, ring_entries, ring_functions, signal_entries, trace_entries):
    compiled()
