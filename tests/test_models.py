"""SPIN searches all runs of the models of labkit/lockfree, processes that are killed included: spinroot.com.

Each model is right, and each can fail: with one thing broken on purpose SPIN finds the run in which that matters.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).parent.parent / "labkit" / "lockfree" / "models"
MEGABYTES = 1500

HANGS, WRONG = "invalid end state", "assertion violated"

HOLD = """
    bells
    bells -DPOLLERS=0
    bells -DPOLLERS=2
    bells -DFENCED
    bells -DKILL -DLOOK_AGAIN
    spsc
    spsc -DSHIFT=1
    spsc -DSHIFT=2
    spsc -DKILLS=2
    copies
    copies -DKILLS=2
    mpmc -DCAPACITY=1 -DFIRST=1
    mpmc -DCAPACITY=1 -DFIRST=3 -DSECOND=0
    mpmc -DCAPACITY=2 -DFIRST=3 -DSECOND=0
    mpmc -DCAPACITY=1 -DFIRST=1 -DSECOND=0 -DKILLS=2
    mpmc -DCAPACITY=1 -DFIRST=1 -DSECOND=0 -DLOANS
    mpmc -DCAPACITY=1 -DFIRST=1 -DSECOND=0 -DREUSE
    mpmc -DCAPACITY=2 -DFIRST=3 -DSECOND=0 -DRUN
    blocks
    blocks -DKILLS=2 -DRECEIVERS=1
    blocks -DRUN=1 -DREUSE -DRECEIVERS=1
    blocks -DRUN=1 -DSHARED
    holders -DKILLS=1
    broadcast -DKILLS=2
    broadcast -DMARKS
"""

FAIL = {
    "bells -DNO_BARRIER": HANGS,
    "bells -DFENCED -DNO_FENCE": HANGS,
    "bells -DEXCHANGED": HANGS,
    "bells -DNO_SECOND_LOOK": HANGS,
    "bells -DTICKET_LATE": HANGS,
    "bells -DPOLLERS=2 -DONE_COUNT": HANGS,
    "bells -DKILL": HANGS,
    "spsc -DEDGE_A": WRONG,
    "spsc -DEDGE_B": WRONG,
    "spsc -DSTALE": HANGS,
    "spsc -DNO_ABANDON -DSHIFT=1": HANGS,
    "spsc -DCUT_EARLY -DSHIFT=1": WRONG,
    "spsc -DRELEASED -DSHIFT=1": WRONG,
    "copies -DCOPY_FIRST": WRONG,
    "copies -DASKED_FIRST": WRONG,
    "copies -DNEWEST": WRONG,
    "copies -DHEIRLOOM": WRONG,
    "copies -DLOAN": WRONG,
    "copies -DEDGE_A": WRONG,
    "mpmc -DVYUKOV": HANGS,
    "mpmc -DPUBLISH_FIRST": WRONG,
    "mpmc -DRELEASE_FIRST -DKILLS=0": WRONG,
    "mpmc -DHINT_FIRST": WRONG,
    "mpmc -DCLOSED_EARLY": WRONG,
    "mpmc -DBLIND_BURY -DREUSE -DCAPACITY=1": WRONG,
    "mpmc -DNO_TIMES -DREUSE -DCAPACITY=1": WRONG,
    "mpmc -DNO_SWEEP -DREUSE -DCAPACITY=1": WRONG,
    "blocks -DOWNER_FIRST -DRUN=1 -DREUSE -DRECEIVERS=1": WRONG,
    "blocks -DNO_SERIAL -DRUN=1 -DREUSE -DRECEIVERS=1": WRONG,
    "blocks -DNO_SWEEP -DRUN=1 -DREUSE -DRECEIVERS=1": WRONG,
    "blocks -DRELEASE_FIRST": WRONG,
    "blocks -DPUBLISH_FIRST": WRONG,
    "blocks -DNO_POSITION": WRONG,
    "blocks -DRUN=1 -DSHARED -DLAST_ONLY": WRONG,
    "blocks -DRUN=1 -DSHARED -DSHARED_READ": WRONG,
    "mpmc -DBACK_FIRST -DLOANS -DCAPACITY=1 -DSECOND=0": HANGS,
    "holders -DAT_FIRST_SEND": WRONG,
    "holders -DAT_ARRIVAL": WRONG,
    "holders -DPLACE_FIRST": WRONG,
    "holders -DNO_COUNT": WRONG,
    "holders -DCOUNT_LATE": WRONG,
    "holders -DLOCKS_STAY": HANGS,
    "broadcast -DEDGE_A": WRONG,
    "broadcast -DEDGE_A_LOAD": WRONG,
    "broadcast -DEDGE_O": WRONG,
    "broadcast -DEDGE_O_LOAD": WRONG,
    "broadcast -DEDGE_N": WRONG,
    "broadcast -DNO_ROOM": WRONG,
    "broadcast -DOLDEST_ONLY": WRONG,
}


def search(what: str, folder: Path) -> str:
    """What SPIN prints about a model, in all of whose runs it has looked for an error; or until it has found one."""
    for tool in ("spin", "gcc"):
        if not shutil.which(tool):
            pytest.skip(f"NOT TESTED: no {tool}; install the Debian packages spin and gcc (apt-get install spin gcc)")
    name, *options = what.split()
    model = shutil.copy(MODELS / f"{name}.pml", folder)
    # Of each program that SPIN writes, optimizing takes longer than what it saves.
    command = ["spin", *options, "-run", "-O0", "-DSAFETY", f"-DMEMLIM={MEGABYTES}", "-m1000000", "-w22", model]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert re.search(r"errors: \d+", done.stdout), done.stdout + done.stderr
    assert "max search depth too small" not in done.stdout and "out of memory" not in done.stdout, done.stdout
    return done.stdout


def how_it_went(what: str, folder: Path) -> str:
    """The run that SPIN has found, statement by statement."""
    name, *options = what.split()
    command = ["spin", *options, "-t", "-p", "-g", f"{name}.pml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("what", [line.strip() for line in HOLD.strip().splitlines()])
def test_no_run_of_the_model_goes_wrong(what, tmp_path):
    found = search(what, tmp_path)
    assert "errors: 0" in found, found + how_it_went(what, tmp_path)[-6000:]


@pytest.mark.parametrize("what, how", FAIL.items(), ids=str)
def test_what_is_broken_on_purpose_is_found(what, how, tmp_path):
    found = search(what, tmp_path)
    assert "errors: 1" in found and how in found, found


def test_every_model_and_every_switch_is_tested():
    tried = HOLD + " ".join(FAIL)
    for path in MODELS.glob("*.pml"):
        switches = set(re.findall(r"#\s*ifn?def (\w+)|defined\((\w+)\)", path.read_text()))
        for switch in {name for pair in switches for name in pair if name}:
            assert re.search(rf"\b{path.stem}\b[^\n]*-D{switch}\b", tried), f"{path.name}: {switch} is never tried"
