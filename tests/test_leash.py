"""The leash of programs that other packages start: see test_cluster.py and test_kernels.py for what it holds."""

import os
import subprocess
import sys


def test_who_is_killed_before_the_leash_is_in_hand_leaves_neither_sweeper_nor_folder(tmp_path):
    folder = tmp_path / "cluster"
    folder.mkdir()
    os.mkfifo(folder / "leash")  # and nobody has it open for writing, any more
    command = [sys.executable, "-m", "labkit.leash", "--sweep", str(folder / "leash"), "0", "timeit"]
    ended = subprocess.run(
        command, capture_output=True, timeout=60, check=False
    )  # until the sweeper, too, has closed it
    assert b"process 0, which started this, has ended" in ended.stderr
    assert not folder.exists()
