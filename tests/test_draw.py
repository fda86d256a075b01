"""The pictures of the labs, who holds a pipe, and where in memory some bytes are."""

import os
import sys
from subprocess import PIPE, Popen

import pytest
from matplotlib.colors import to_rgb

from labkit.draw import INK, liveliest, plot_lines, plot_spans, plot_strips, stretches, torn
from labkit.holders import PIECE, Holder, holders, places
from labkit.stats import COLOURS


def test_stretches_are_runs_of_equal_bytes():
    assert stretches(b"AABA") == [("A", 0, 2), ("B", 2, 1), ("A", 3, 1)]
    assert stretches(b"") == []


@pytest.mark.parametrize("data, number", [(b"AAAABBBB", 0), (b"AABBBBAA", 1), (b"ABABABAB", 2), (b"AAAAAAAA", 0)])
def test_a_write_is_torn_when_others_come_in_between(data, number):
    assert torn(data, 4) == number


def test_strips_mark_cut_writes_and_show_a_window():
    svg = plot_strips({"four": b"AABBBBAA" * 3}, [4], window=(0, 8))._repr_svg_()
    whole = plot_strips({"four": b"AAAABBBB"}, [4])._repr_svg_()
    assert "#222222" in svg and "#222222" not in whole  # the ink of the marks
    assert svg.count("#0072b2") > 0


def test_the_liveliest_part_is_where_the_writers_alternate_most():
    assert liveliest(b"AAAABBBBABABABBBBB", 6) == b"ABABAB"
    assert liveliest(b"AAAAAAAA", 3) == b"AAA"
    assert liveliest(b"AAAAAAAB", 4) == b"AAAB"
    assert liveliest(b"", 4) == b""


def test_what_nobody_wrote_is_black_and_takes_no_colour_from_the_writers():
    axes = plot_strips({"one": b"A?B"}).axes
    colours = {bars.get_label(): tuple(bars.get_facecolor()[0][:3]) for bars in axes.collections}
    assert colours["?"] == to_rgb(INK)
    assert colours["A"] == to_rgb(COLOURS[0])
    assert colours["B"] == to_rgb(COLOURS[1])


def test_spans_begin_at_zero_and_name_who_and_what():
    axes = plot_spans([("reader", 10.0, 10.5, "waits"), ("writer", 10.2, 10.5, "waits")]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["reader", "writer"]
    assert axes.get_xlim()[0] == 0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["waits"]


def test_lines_have_a_legend_only_when_there_are_several():
    assert plot_lines({"": [(1, 2), (3, 4)]}, "x (ms)", "y").axes.get_legend() is None
    assert plot_lines({"a": [(1, 2)], "b": [(1, 3)]}, "x (ms)", "y", log="xy", style="dots").axes.get_legend()


def test_each_line_may_have_a_style_of_its_own():
    axes = plot_lines({"a": [(1, 2)], "b": [(1, 3)]}, "x", "y", style={"a": "line", "b": "points"}).axes
    assert [(line.get_linestyle(), line.get_marker()) for line in axes.get_lines()] == [("-", "None"), ("None", "s")]


def test_holders_name_every_descriptor_of_a_pipe_and_what_it_is_open_for():
    read_end, write_end = os.pipe()
    cat = Popen(["cat"], stdin=read_end, stdout=PIPE)
    try:
        found = holders(write_end)
        assert set(found) == {
            Holder(os.getpid(), "this process", read_end, "reading"),
            Holder(os.getpid(), "this process", write_end, "writing"),
            Holder(cat.pid, "cat", 0, "reading"),
        }
        assert "cat" in repr(found) and "<td" in found._repr_html_()
    finally:
        os.close(read_end)
        os.close(write_end)
        cat.communicate()


def test_a_file_that_nobody_has_open_has_no_holders(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    assert list(holders(path)) == [] and repr(holders(path)) == "nobody"
    with pytest.raises(FileNotFoundError):
        holders(tmp_path / "nothing")


WRITES = f"""
import mmap, sys
word, memory = sys.stdin.buffer.readline().strip(), mmap.mmap(-1, {3 * PIECE})
for at in (0, {PIECE} - 5, {2 * PIECE} - len(word) * 10, {3 * PIECE} - len(word) * 10):
    memory[at : at + len(word) * 10] = word * 10
print("here", flush=True)
sys.stdin.read()
"""


ACROSS = """
import mmap, sys
one, other = sys.stdin.buffer.readline().split()  # nowhere together but in that memory
memory = mmap.mmap(-1, 2 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_DONTDUMP, mmap.PAGESIZE, mmap.PAGESIZE)
memory[mmap.PAGESIZE - len(one) : mmap.PAGESIZE] = one
memory[mmap.PAGESIZE : mmap.PAGESIZE + len(other)] = other
print("here", flush=True)
sys.stdin.read()
"""


def test_bytes_are_found_where_private_memory_goes_on_under_other_flags():
    one, other = os.urandom(8).hex().encode(), os.urandom(8).hex().encode()
    with Popen([sys.executable, "-c", ACROSS], stdin=PIPE, stdout=PIPE) as process:
        process.stdin.write(one + b" " + other + b"\n")
        process.stdin.flush()
        process.stdout.readline()
        found = places(process.pid, one + other)
        process.communicate()
    assert found == ["private"]


def test_bytes_are_found_in_every_place_of_another_process_also_where_two_pieces_meet():
    word = os.urandom(8).hex().encode()
    with Popen([sys.executable, "-c", WRITES], stdin=PIPE, stdout=PIPE) as process:
        process.stdin.write(word + b"\n")
        process.stdin.flush()
        process.stdout.readline()
        found = places(process.pid, word * 10)
        process.communicate()
    assert len([place for place in found if place != "private"]) == 4
    with pytest.raises(ProcessLookupError):
        places(process.pid, word)
    with pytest.raises(ValueError, match="another process"):
        places(os.getpid(), word)
