"""A seccomp filter as container runtimes set it, for tests: new namespaces are refused with EPERM. seccomp(2)."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
ALLOW, REFUSE = 0x7FFF_0000, 0x0005_0000 | errno.EPERM
UNSHARE, SETNS = {"x86_64": (272, 308), "aarch64": (97, 268)}.get(platform.machine(), (-1, -1))


def refuse_namespaces() -> None:
    """From now on unshare(2) and setns(2) fail in this process and its children, for good."""
    program = [
        struct.pack("HBBI", LOAD, 0, 0, 0),  # the number of the system call
        struct.pack("HBBI", JUMP_IF_EQUAL, 1, 0, UNSHARE),
        struct.pack("HBBI", JUMP_IF_EQUAL, 0, 1, SETNS),
        struct.pack("HBBI", RETURN, 0, 0, REFUSE),
        struct.pack("HBBI", RETURN, 0, 0, ALLOW),
    ]
    instructions = ctypes.create_string_buffer(b"".join(program))
    filter_ = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(filter_), 0, 0) == 0
