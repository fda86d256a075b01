"""The litmus tests that everybody knows by name, with loads, stores and fences of one's choice.

Their names are those of L. Maranget, S. Sarkar, P. Sewell, "A tutorial introduction to the ARM and POWER relaxed memory
models" (2012): store buffering, message passing, load buffering; R and S are the two between them, 2+2W is two stores
against two stores.
"""

from __future__ import annotations

from typing import Any

from labkit.litmus import Litmus
from labkit.lockfree.atomics import compiler_fence, load_relaxed, store_relaxed


def classics(load: Any = load_relaxed, store: Any = store_relaxed, fence: Any = compiler_fence) -> dict[str, Litmus]:
    """SB, MP, LB, R, S and 2+2W.

    Args:
        load: any load of labkit.lockfree.atomics.
        store: any store of it.
        fence: any fence of it, which stands between the two operations of each side; unless given it is one for the
            compiler only, so that both operations come to the processor in the order of the program.
    """

    def sb_left(x, y):
        store(x, 1)
        fence()
        return load(y)

    def sb_right(x, y):
        store(y, 1)
        fence()
        return load(x)

    def mp_left(x, y):
        store(x, 1)
        fence()
        store(y, 1)

    def mp_right(x, y):
        first = load(y)
        fence()
        return first, load(x)

    def lb_left(x, y):
        seen = load(x)
        fence()
        store(y, 1)
        return seen

    def lb_right(x, y):
        seen = load(y)
        fence()
        store(x, 1)
        return seen

    def r_right(x, y):
        store(y, 2)
        fence()
        return load(x)

    def s_left(x, y):
        store(x, 2)
        fence()
        store(y, 1)

    def w_left(x, y):
        store(x, 1)
        fence()
        store(y, 2)

    def w_right(x, y):
        store(y, 1)
        fence()
        store(x, 2)

    tests = {
        "SB": (sb_left, sb_right),
        "MP": (mp_left, mp_right),
        "LB": (lb_left, lb_right),
        "R": (mp_left, r_right),
        "S": (s_left, lb_right),
        "2+2W": (w_left, w_right),
    }
    suffix = "" if fence is compiler_fence else ", fences"
    return {name: Litmus(f"{name}{suffix}", left, right) for name, (left, right) in tests.items()}
