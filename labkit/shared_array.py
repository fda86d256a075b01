"""A NumPy array that several processes see at once, without a copy: memfd_create(2), mmap(2). TLPI ch. 49, 54."""

from __future__ import annotations

import errno
import fcntl
import math
import mmap
import os
import sys
from typing import Any

import numpy as np

from labkit.channels.base import arrived, travelling, unavailable


class SharedArray:
    """An array in memory without a name: after `launch(f, shared)` the child's `shared.array` is the same memory.

    Nobody guards it: whoever reads while somebody writes may see half of it. The memory is sealed against changes of
    its size, and is gone with the last process that has it, however that ends.

    Args:
        shape: as for numpy.zeros.
        dtype: numbers of a fixed size, no Python objects.

    Raises:
        TypeError: the dtype holds Python objects, which live in one process only.
        ValueError: there would be nothing in it.
        OSError: ENOMEM or ENOSPC, the machine has no room for it.
    """

    def __init__(self, shape: int | tuple[int, ...], dtype: Any = np.float64):
        self.dtype = np.dtype(dtype)
        if self.dtype.hasobject:
            raise TypeError(f"{self.dtype} holds Python objects, which are addresses in one process: use numbers")
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        size = math.prod(self.shape) * self.dtype.itemsize
        if size <= 0:
            raise ValueError(f"an array of shape {self.shape} has nothing to share")
        self._fd = os.memfd_create("labkit-array", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self._fd, 0, size)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._map()
        except OSError as reason:
            os.close(self._fd)
            self._fd = -1
            advice = f"there is no room for {size:,} bytes"
            raise unavailable("memfd_create", reason.errno or errno.ENOMEM, advice) from reason

    def _map(self) -> None:
        mapping = mmap.mmap(self._fd, math.prod(self.shape) * self.dtype.itemsize)
        self.array = np.frombuffer(mapping, self.dtype).reshape(self.shape)

    def close(self) -> None:
        """Give up the descriptor. Arrays that are still used keep their memory until they are forgotten."""
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            del self.array
            os.close(fd)

    def __del__(self, _finalizing: Any = sys.is_finalizing) -> None:
        if not _finalizing():
            self.close()

    def __reduce__(self) -> Any:
        if self._fd < 0:
            raise ValueError("this shared array is closed")
        return _arrives, (travelling(self._fd), self.shape, self.dtype)

    def __repr__(self) -> str:
        return f"<shared array, {'×'.join(map(str, self.shape))} {self.dtype}, {'open' if self._fd >= 0 else 'closed'}>"


def _arrives(ticket: Any, shape: tuple[int, ...], dtype: np.dtype) -> SharedArray:
    shared = SharedArray.__new__(SharedArray)
    shared._fd, shared.shape, shared.dtype = arrived(ticket), shape, dtype
    shared._map()
    return shared
