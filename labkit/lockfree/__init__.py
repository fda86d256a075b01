"""Lock-free data structures in shared memory, compiled by Numba."""
