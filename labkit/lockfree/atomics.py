"""Atomic loads, stores and read-modify-writes on raw addresses, for Numba-compiled code.

Each function is one LLVM instruction with its memory order (LangRef, "Atomic Memory Ordering Constraints").
They take an address (an integer) of an aligned 64-bit word and work on memory shared between processes.

Numba caches compiled callers by the caller's own source, so that editing this file would leave stale code behind:
whoever caches code that uses these calls makes it depend on `labkit.lockfree.entry.SOURCES`.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WORD = ir.IntType(64)


def _pointer(builder, address):
    return builder.inttoptr(address, WORD.as_pointer())


@intrinsic
def load_acquire(typingctx, address):
    """Read a word; nothing after it in program order is done before it."""

    def code(context, builder, signature, arguments):
        return builder.load_atomic(_pointer(builder, arguments[0]), "acquire", 8, typ=WORD)

    return types.int64(types.int64), code


@intrinsic
def load_relaxed(typingctx, address):
    """Read a word, whole, with no order: for a word that only the caller writes, or a hint."""

    def code(context, builder, signature, arguments):
        return builder.load_atomic(_pointer(builder, arguments[0]), "monotonic", 8, typ=WORD)

    return types.int64(types.int64), code


@intrinsic
def store_release(typingctx, address, value):
    """Write a word; everything before it in program order is visible to whoever acquires it."""

    def code(context, builder, signature, arguments):
        builder.store_atomic(arguments[1], _pointer(builder, arguments[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def store_relaxed(typingctx, address, value):
    """Write a word, whole, with no order."""

    def code(context, builder, signature, arguments):
        builder.store_atomic(arguments[1], _pointer(builder, arguments[0]), "monotonic", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def load_seq_cst(typingctx, address):
    """Read a word, in the one order in which all processes see sequentially consistent loads, stores and fences."""

    def code(context, builder, signature, arguments):
        return builder.load_atomic(_pointer(builder, arguments[0]), "seq_cst", 8, typ=WORD)

    return types.int64(types.int64), code


@intrinsic
def store_seq_cst(typingctx, address, value):
    """Write a word, in the one order in which all processes see sequentially consistent loads, stores and fences."""

    def code(context, builder, signature, arguments):
        builder.store_atomic(arguments[1], _pointer(builder, arguments[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def load_constant(typingctx, address):
    """Read a word that nobody writes while compiled code can see it: the compiler may read it once for a whole loop."""

    def code(context, builder, signature, arguments):
        word = builder.load(_pointer(builder, arguments[0]), align=8, typ=WORD)
        word.set_metadata("invariant.load", builder.module.add_metadata([]))
        return word

    return types.int64(types.int64), code


@intrinsic
def load_plain(typingctx, address):
    """Read a word that nobody else writes meanwhile: the compiler may leave the load out, repeat it or move it."""

    def code(context, builder, signature, arguments):
        return builder.load(_pointer(builder, arguments[0]), align=8, typ=WORD)

    return types.int64(types.int64), code


@intrinsic
def store_plain(typingctx, address, value):
    """Write a word that nobody else uses meanwhile: the compiler may leave the store out, split it or move it."""

    def code(context, builder, signature, arguments):
        builder.store(arguments[1], _pointer(builder, arguments[0]), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def add(typingctx, address, amount):
    """Add to a word and return what it was before; ordered with everything before and after."""

    def code(context, builder, signature, arguments):
        return builder.atomic_rmw("add", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def exchange(typingctx, address, value):
    """Write a word and return what it was before; ordered with everything before and after."""

    def code(context, builder, signature, arguments):
        return builder.atomic_rmw("xchg", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def set_bits(typingctx, address, bits):
    """Set bits of a word and return what it was before; ordered with everything before and after."""

    def code(context, builder, signature, arguments):
        return builder.atomic_rmw("or", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def keep_bits(typingctx, address, bits):
    """Clear all bits of a word but these, and return what it was before; ordered with everything before and after."""

    def code(context, builder, signature, arguments):
        return builder.atomic_rmw("and", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def compare_exchange(typingctx, address, expected, value):
    """Write a word if it is `expected`, and return what it was before. It acquires; when it writes, it releases too."""

    def code(context, builder, signature, arguments):
        address, expected, value = arguments
        pair = builder.cmpxchg(_pointer(builder, address), expected, value, "acq_rel", "acquire")
        return builder.extract_value(pair, 0)

    return types.int64(types.int64, types.int64, types.int64), code


# A futex is an unsigned word of 32 bits: futex(2). These take and return it as an integer of 64.

INT = ir.IntType(32)


def _int_pointer(builder, address):
    return builder.inttoptr(address, INT.as_pointer())


@intrinsic
def load_int_acquire(typingctx, address):
    """Read a 32-bit word; nothing after it in program order is done before it."""

    def code(context, builder, signature, arguments):
        found = builder.load_atomic(_int_pointer(builder, arguments[0]), "acquire", 4, typ=INT)
        return builder.zext(found, WORD)

    return types.int64(types.int64), code


@intrinsic
def exchange_int(typingctx, address, value):
    """Write a 32-bit word and return what it was before; ordered with everything before and after."""

    def code(context, builder, signature, arguments):
        address, value = arguments
        new = builder.trunc(value, INT)
        return builder.zext(builder.atomic_rmw("xchg", _int_pointer(builder, address), new, "seq_cst"), WORD)

    return types.int64(types.int64, types.int64), code


@intrinsic
def add_int(typingctx, address, amount):
    """Add to a 32-bit word, which wraps, and return what it was before; ordered with everything before and after."""

    def code(context, builder, signature, arguments):
        address, amount = arguments
        new = builder.trunc(amount, INT)
        return builder.zext(builder.atomic_rmw("add", _int_pointer(builder, address), new, "seq_cst"), WORD)

    return types.int64(types.int64, types.int64), code


@intrinsic
def compare_exchange_int(typingctx, address, expected, value):
    """Write a 32-bit word if it is `expected`, and return what it was before; ordered with everything around it."""

    def code(context, builder, signature, arguments):
        address, expected, value = arguments
        pair = builder.cmpxchg(
            _int_pointer(builder, address),
            builder.trunc(expected, INT),
            builder.trunc(value, INT),
            "seq_cst",
            "seq_cst",
        )
        return builder.zext(builder.extract_value(pair, 0), WORD)

    return types.int64(types.int64, types.int64, types.int64), code


@intrinsic
def fence(typingctx):
    """Everything before is done before everything after, for all processes. Sequentially consistent."""

    def code(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def acquire_fence(typingctx):
    """What was loaded before is loaded before everything after. No instruction on x86-64, `dmb ishld` on AArch64."""

    def code(context, builder, signature, arguments):
        builder.fence("acquire")
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def release_fence(typingctx):
    """Everything before is done before what is stored after. No instruction on x86-64, `dmb ish` on AArch64."""

    def code(context, builder, signature, arguments):
        builder.fence("release")
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def compiler_fence(typingctx):
    """The compiler keeps what is before before, and what is after after; no instruction, the processor is not told."""

    def code(context, builder, signature, arguments):
        builder.fence("seq_cst", targetscope="singlethread")
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def pointer(typingctx, address):
    """An address as a `void *`, for numba.carray(pointer(address), shape, dtype)."""

    def code(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), code


@intrinsic
def copy(typingctx, to, source, size):
    """memcpy(3): `size` bytes from `source` to `to`, plain loads and stores of memory that the caller owns."""

    def code(context, builder, signature, arguments):
        byte_pointer = ir.IntType(8).as_pointer()
        to, source, size = arguments
        memcpy = builder.module.declare_intrinsic("llvm.memcpy", [byte_pointer, byte_pointer, WORD])
        builder.call(
            memcpy,
            [
                builder.inttoptr(to, byte_pointer),
                builder.inttoptr(source, byte_pointer),
                size,
                ir.Constant(ir.IntType(1), 0),
            ],
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), code


def _prefetch(for_write):
    def code(context, builder, signature, arguments):
        byte_pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch.p0i8", fnty=ir.FunctionType(ir.VoidType(), [byte_pointer, number, number, number])
        )
        constants = [ir.Constant(number, value) for value in (for_write, 3, 1)]  # keep it near; data
        builder.call(prefetch, [builder.inttoptr(arguments[0], byte_pointer), *constants])
        return context.get_dummy_value()

    return types.void(types.int64), code


@intrinsic
def prefetch(typingctx, address):
    """Fetch a cache line that will be read soon. A hint: nothing is read, nothing is ordered, any address will do."""
    return _prefetch(0)


@intrinsic
def prefetch_to_write(typingctx, address):
    """Fetch a cache line that will be written soon, and take it from the caches of others. A hint, as `prefetch`."""
    return _prefetch(1)


@intrinsic
def on_stack(typingctx):
    """Address of 80 zeroed bytes on the caller's stack, aligned to 8: room for one Py_buffer."""

    def code(context, builder, signature, arguments):
        return builder.ptrtoint(cgutils.alloca_once_value(builder, ir.Constant(ir.ArrayType(WORD, 10), None)), WORD)

    return types.int64(), code


@intrinsic
def pause(typingctx):
    """Tell the processor that this is a spin loop (x86 pause, AArch64 yield)."""

    def code(context, builder, signature, arguments):
        triple = builder.module.triple
        name = "llvm.x86.sse2.pause" if "86" in triple.split("-")[0] else "llvm.aarch64.hint"
        if name == "llvm.aarch64.hint":
            hint = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [ir.IntType(32)]), name)
            builder.call(hint, [ir.Constant(ir.IntType(32), 1)])
        else:
            function = builder.module.globals.get(name) or ir.Function(
                builder.module, ir.FunctionType(ir.VoidType(), []), name
            )
            builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def load_int(typingctx, address):
    """Read a C int that the caller owns, a plain load: errno, for instance."""

    def code(context, builder, signature, arguments):
        number = builder.load(builder.inttoptr(arguments[0], ir.IntType(32).as_pointer()))
        return builder.sext(number, WORD)

    return types.int64(types.int64), code
