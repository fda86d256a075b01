"""What Numba makes of a compiled function: LLVM's intermediate language, and the assembly of an AArch64 machine."""

from __future__ import annotations

import re
from typing import Any

import pytest
from llvmlite import binding

AARCH64 = "aarch64-unknown-linux-gnu"


def llvm_of(function: Any, signature: tuple[Any, ...]) -> str:
    """Optimized, together with all compiled functions that it calls."""
    function.compile(signature)
    return str(function.inspect_llvm(function.signatures[-1]))


def aarch64_of(llvm: str) -> str:
    """The same for a machine that keeps no more order than it is told to, whatever this machine is."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        machine = binding.Target.from_triple(AARCH64).create_target_machine(opt=3)
    except RuntimeError:
        pytest.skip("NOT TESTED: this llvmlite knows no AArch64")
    text = re.sub(r"^target (triple|datalayout) .*$", "", llvm, flags=re.M)
    text = re.sub(r'"(target-cpu|target-features|tune-cpu)"="[^"]*"', "", text)
    return str(machine.emit_assembly(binding.parse_assembly(f'target triple = "{AARCH64}"\n{text}')))
