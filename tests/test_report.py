"""Reports: one file that works without a network, tells no secrets, and is written also when a notebook fails."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

from labkit import Trace, channel, machine, watch
from labkit.bench import report_cost
from labkit.bench.made_up import MadeUp
from labkit.page import Page, machine_facts, scrub
from labkit.report import missing_fonts, report, report_notebooks, run
from labkit.stats import STANDS_IN
from labkit.views import recording
from tests.browser import chromium, find_or_skip, opened, until

new = nbformat.v4


def notebook(path: Path, *cells: str, tags: list[str] | None = None) -> Path:
    """A notebook of these cells; text that begins with # and a space is Markdown."""
    made = [new.new_markdown_cell(c) if c.startswith("# ") else new.new_code_cell(c) for c in cells]
    if tags:
        made[-1].metadata.tags = tags
    nbformat.write(new.new_notebook(cells=made), path)
    return path


def written(tmp_path: Path, *cells: str, **options) -> tuple[int, str]:
    """Exit status and page of a report of one notebook of these cells."""
    output = tmp_path / "report.html"
    status = report_notebooks([notebook(tmp_path / "lab.ipynb", *cells, **options)], output)
    return status, output.read_text()


RICH = (
    "# Pipes & queues\n\nA message takes $t_r - t_s$.\n\n$$\\frac{a}{b}$$\n\n## 你好 🎉\n\n|a|b|\n|-|-|\n|1|2|",
    "print('\\x1b[31mred\\x1b[0m <b>not bold</b>')",
    "import sys; print('careful', file=sys.stderr)",
    "from IPython.display import HTML, SVG, display; display(HTML('<table><tr><td>cell</td></tr></table>'))",
    'display(SVG(\'<svg xmlns="http://www.w3.org/2000/svg" width="5" height="5"></svg>\'))',
    "import ipywidgets; ipywidgets.IntSlider(value=7)",
    "import os; print(os.getcwd()); open('made.txt', 'w').close()",
    "from labkit import Trace, channel, watch\ntrace = Trace()\ntx, rx = channel('pipe', trace=trace)\nwatch(trace)",
    "for _ in range(30):\n    tx.send(b'hello')\n    rx.receive()",
    "trace.latency().plot()",
)


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """The report of a notebook with every kind of output in it."""
    folder = tmp_path_factory.mktemp("rich")
    return *written(folder, *RICH), folder


def test_a_notebook_becomes_a_page_with_everything_in_it(rich):
    status, page, folder = rich
    assert status == 0
    assert "<title>Pipes &amp; queues</title>" in page and 'href="#n1-pipes-queues"' in page
    assert '<span class="ansi-red-fg">red</span> &lt;b&gt;not bold&lt;/b&gt;' in page
    assert '<pre class="stderr">careful' in page and "<td>cell</td>" in page and "你好 🎉" in page
    assert page.count("data:image/svg+xml;base64,") >= 4  # two formulas, a picture, a plot
    assert "needs a running kernel" in page and "IntSlider(value=7)" in page
    assert str(folder) in page and (folder / "made.txt").exists()  # it ran in its own folder


def test_a_page_names_no_other_file(rich):
    _, page, _ = rich
    outside = re.findall(
        r"""(?:src|href)=["'](?!#|data:)[^"']*|@import|url\(""", re.sub(r"(?s)<script.*?</script>", "", page)
    )
    assert outside == [] and "default-src 'none'" in page


def test_a_module_is_in_the_page_once_and_settling_leaves_no_trace(rich):
    _, page, _ = rich
    assert page.count("const flow_js = ") == 1 and "settle()" not in page


@pytest.mark.browser
def test_the_view_of_a_notebook_plays_offline(rich, tmp_path):
    _, _, folder = rich
    with chromium() as browser, opened(browser, (folder / "report.html").as_uri()) as page:
        page.locator(".view").scroll_into_view_if_needed()
        now = until(page, lambda s: s["messages"] == 30 and s["playing"], "played")
        assert now["channels"][0]["label"] == "pipe"
        until(page, lambda s: s["channels"][0]["received"] == 30 and not s["playing"], "came to its end", seconds=60)
        assert page.complaints == []


def test_what_a_cell_prints_bit_by_bit_is_one_piece(tmp_path):
    _, page = written(tmp_path, "import time\nfor word in 'one', 'two': print(word, flush=True); time.sleep(0.3)")
    assert "one\ntwo" in page


def test_a_failing_notebook_is_reported_with_its_error_and_what_comes_after(tmp_path, capsys):
    status, page = written(tmp_path, "# Lab", "1 / 0", "print('still', 'running')")
    assert status == 1
    assert "ZeroDivisionError" in page and 'class="cell failed"' in page and "still running" in page
    assert "lab.ipynb: cell 1 failed with ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_an_error_that_the_author_expects_is_no_failure(tmp_path):
    status, page = written(tmp_path, "1 / 0", tags=["raises-exception"])
    assert status == 0 and "ZeroDivisionError" in page


def test_a_kernel_that_dies_ends_its_notebook_in_one_sentence(tmp_path, capsys):
    status, page = written(tmp_path, "print('before')", "import os; os.kill(os.getpid(), 9)", "print('never')")
    assert status == 1 and "before" in page and page.count('class="cell failed"') == 1
    assert "cell 2 failed with DeadKernelError: its kernel died" in capsys.readouterr().err


def test_a_cell_that_hangs_is_given_up(tmp_path, capsys):
    path = notebook(tmp_path / "lab.ipynb", "import time; time.sleep(60)")
    assert report_notebooks([path], tmp_path / "report.html", timeout=1) == 1
    assert "took longer than 1 s" in capsys.readouterr().err


def test_several_notebooks_make_one_page_with_contents(tmp_path):
    first, second = notebook(tmp_path / "a.ipynb", "# First"), notebook(tmp_path / "b.ipynb", "print(2)")
    assert report_notebooks([first, second], tmp_path / "all.html", title="Both") == 0
    page = (tmp_path / "all.html").read_text()
    assert re.findall(r'<li class="l1"><a href="#[^"]*">(.*?)</a>', page) == ["First", "b"]
    assert "<title>Both</title>" in page


def test_a_link_to_a_lab_that_is_in_the_page_stays_in_the_page(tmp_path):
    prose = (
        "# A\n\n[next](b.ipynb), [its end](b.ipynb#The-end), [gone](../c.ipynb), [web](https://example.org) [up](#A)"
    )
    first = notebook(tmp_path / "a.ipynb", prose)
    second = notebook(tmp_path / "b.ipynb", "# B\n\n[web](mailto:b@example.org)")
    report_notebooks([first, second], tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text()
    assert '<a href="#n2">next</a>, <a href="#n2">its end</a>' in page and '<a href="#n1-a">up</a>' in page
    assert '<a href="https://example.org">web</a>' in page and '<a href="mailto:b@example.org">web</a>' in page
    assert '<span title="../c.ipynb, beside the notebook">gone</span>' in page  # no dead link


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "there is no such notebook"), ("", "is not a Jupyter notebook"), ('{"a": 1}', "is not a Jupyter notebook")],
)
def test_what_is_not_a_notebook_is_named_in_one_sentence(tmp_path, capsys, content, sentence):
    path = tmp_path / "lab.ipynb"
    if content is not None:
        path.write_text(content)
    assert report_notebooks([path], tmp_path / "report.html") == 2
    said = capsys.readouterr().err
    assert sentence in said and "lab.ipynb" in said and said.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_an_output_that_cannot_be_written_is_found_out_before_anything_runs(tmp_path, capsys):
    path = notebook(tmp_path / "lab.ipynb", "open('ran', 'w').close()")
    for output in (tmp_path, tmp_path / "no" / "folder.html", Path("/proc/report.html")):
        assert report_notebooks([path], output) == 2
        assert "cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_kernelspec_that_somebody_installed_does_not_interfere(tmp_path, monkeypatch):
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "Python 3", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    status, _ = written(tmp_path, "import sys; print(sys.prefix)")
    assert status == 0


SECRETS = {"HUB_API_TOKEN": "s3cret-0123456789", "DB_PASSWORD": "hunter2hunter2", "GIT_AUTH": "gho_0123456789abcdef"}


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """The report of a notebook that does all it can to tell who ran it where."""
    folder = tmp_path_factory.mktemp("leaky")
    home = folder / "home" / "marigold"
    home.mkdir(parents=True)
    (home / "helper.py").write_text("def fail():\n    raise OSError('?token=abcdef0123456789 ' + __file__)\n")
    cells = (
        "import os\nprint(dict(os.environ))",
        "print(os.path.expanduser('~/notes.txt'))\nget_ipython().config",
        "import sys; sys.path.insert(0, os.path.expanduser('~')); import helper; helper.fail()",
        "%cd ~\n%pwd",
        "print('Authorization: Bearer abcdefghijklmnop0123456789')",
        "print('/'.join(['', 'home', 'someone-else', 'x']), '/'.join(['', 'Users', 'other', 'y']))",
        "from labkit import Trace, channel, watch\ntrace = Trace()",
        "tx, rx = channel('pipe', label=os.path.expanduser('~/meet'), trace=trace)",
        "trace.add_process(4, os.environ['HUB_API_TOKEN'])\nwatch(trace)\ntx.close(), rx.close()",
        "import ipywidgets; ipywidgets.Text(os.environ['DB_PASSWORD'])",
        'from IPython.display import HTML; HTML(f\'<a href="file://{os.path.expanduser("~")}/x">home</a>\')',
    )
    path = notebook(folder / "lab.ipynb", "# Lab in " + str(home), *cells)
    read = nbformat.read(path, 4)
    read.metadata["kernel_info"] = {"connection_file": f"{home}/kernel-0123abcd-ef.json", **SECRETS}
    nbformat.write(read, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        assert report_notebooks([path], folder / "report.html") == 1
    return (folder / "report.html").read_text()


def test_no_secret_gets_into_a_page(leaky):
    assert "~/notes.txt" in leaky and "~/x ~/y" in leaky and "~/helper.py" in re.sub("<[^>]+>", "", leaky)
    for secret in ("marigold", "abcdef0123456789", "abcdefghijklmnop", "/home/someone", "/Users/", *SECRETS.values()):
        assert secret not in leaky
    assert not re.search(r"(kernel|jpserver)-[0-9a-f-]{6,}\.json", leaky)


def test_no_secret_gets_into_what_the_views_of_a_page_draw(leaky):
    views = json.loads(re.search(r'(?s)id="labkit-views">(.*?)</script>', leaky)[1])
    plain = b"".join(gzip.decompress(base64.b64decode(data)) for data in views["data"].values())
    assert b"~/meet" in plain
    for secret in ("marigold", *SECRETS.values()):
        assert secret.encode() not in plain


def test_a_message_that_begins_with_a_secret_is_told_without_its_beginning(monkeypatch):
    monkeypatch.setenv("HOME", "/srv/marigold")
    monkeypatch.setenv("HUB_API_TOKEN", SECRETS["HUB_API_TOKEN"])
    secret = (
        b"s3cret-012345678",
        b'{"s3cret-0123456',
        b"cd /srv/marigold",
        b"x=/home/somebody",
        b"Bearer 012345678",
        b"s3cret",
    )
    told = (b"plain text", bytes(16), b"\xff" * 16, b"s3 is a bucket")
    page = Page("data")
    with Trace() as trace:
        tx, rx = channel("unix_datagram", trace=trace)
        for message in secret + told:
            tx.send(message)
        tx.close(), rx.close()
    page.view("a", {"_esm": ""}, [(["recording"], recording.record(trace))])
    (packed,) = page.views["data"].values()
    plain = gzip.decompress(base64.b64decode(packed))
    columns = np.frombuffer(plain[-24 * len(secret + told) :], "u1").reshape(3, 8, -1)
    known = columns[0, 7] != 255
    assert known.tolist() == [False] * len(secret) + [True] * len(told)
    assert [bytes(first) for first in columns[:, :6].reshape(18, -1)[:16, known].T] == [
        t.ljust(16, b"\0") for t in told
    ]


@pytest.mark.parametrize("raw", [b"", b"\x1f\x8b", b"plain", gzip.compress(b""), gzip.compress(b"\xff" * 40)])
def test_data_that_is_no_recording_is_left_as_it_is(raw):
    page = Page("data")
    page.view("a", {"_esm": ""}, [(["recording"], raw)])
    assert [base64.b64decode(data) for data in page.views["data"].values()] == [raw] and page.runs == []


def test_a_path_in_colour_is_scrubbed_as_well(monkeypatch):
    monkeypatch.setenv("HOME", "/marigold")
    assert scrub("\x1b[32m/marigold/x\x1b[39m \x1b[1;31m/marigold\x1b[0m") == "\x1b[32m~/x\x1b[39m \x1b[1;31m~\x1b[0m"


@pytest.mark.parametrize("text", ["/marigolds/x", "no/marigold/here", "plain text"])
def test_scrubbing_takes_only_the_home_folder_itself(text, monkeypatch):
    monkeypatch.setenv("HOME", "/marigold")
    assert scrub(text) == text
    assert scrub("/marigold/x and '/marigold'") == "~/x and '~'"


def test_facts_about_the_machine_name_neither_host_nor_user():
    facts = machine_facts(machine.facts())
    assert "Python" in facts and os.uname().release in facts and os.uname().nodename not in facts


def test_the_report_of_a_trace_has_its_figures_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "run.html"
    path.write_text("old")
    assert report(MadeUp(4_000), path) == path
    page = path.read_text()
    assert page.count("<tr>") == 5 and page.count("<td>1,000</td>") == 4
    assert 'aria-label="Latency and throughput of each channel"' in page
    assert [p.name for p in tmp_path.iterdir()] == ["run.html"]


def test_the_report_of_an_empty_trace_is_a_page_too(tmp_path):
    with Trace() as trace:
        assert "What the trace recorded" in report(trace, tmp_path / "none.html").read_text()
        tx, rx = channel("pipe", trace=trace)
        assert "pipe" in report(trace, tmp_path / "one.html").read_text()
        tx.close(), rx.close()


def test_without_a_browser_a_pdf_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_BROWSER", "none")
    assert report_notebooks([notebook(tmp_path / "lab.ipynb", "# Lab")], tmp_path / "lab.pdf", to="pdf") == 2
    assert "apt-get install chromium" in capsys.readouterr().err
    assert report_notebooks([tmp_path / "lab.ipynb"], tmp_path / "lab.pdf", to="pdf", browser="no-such-browser") == 2
    assert "there is no program no-such-browser" in capsys.readouterr().err


@pytest.mark.browser
def test_a_pdf_has_the_text_in_every_script_and_a_picture_of_the_view(tmp_path, capsys):
    pypdf = pytest.importorskip("pypdf", reason="NOT TESTED: pip install pypdf")
    find_or_skip()
    if missing_fonts("你🎉"):
        pytest.skip("NOT TESTED: no fonts; install fonts-wqy-microhei and fonts-noto-color-emoji")
    prose = "# Lab\n\n你好, 世界. naïve → 🎉 👩\u200d🚀 日本語\n\n[web](https://example.org)"
    path, output = notebook(tmp_path / "lab.ipynb", prose, *RICH[-3:]), tmp_path / "lab.pdf"
    assert report_notebooks([path], output, to="pdf") == 0
    assert "no font" not in capsys.readouterr().err
    read = pypdf.PdfReader(output)
    text = "\n".join(page.extract_text() for page in read.pages)
    for words in (
        "Lab",
        "你好",
        "世界",
        "naïve →",
        "🎉",
        "👩\u200d🚀",
        "日本語",
        "The end of a recording",
        "pipe: half within",
    ):
        assert words in text
    assert read.metadata.title == "Lab" and str(tmp_path) not in output.read_bytes().decode("latin-1")
    assert [float(side) for side in read.pages[0].mediabox[2:]] == pytest.approx([595, 842], abs=1)  # A4


@pytest.mark.browser
def test_recordings_are_unpacked_before_any_time_passes():
    """A page that is printed lives on virtual time, which runs on while bytes come from elsewhere: no view is empty."""
    source = Path(recording.__file__).with_name("shared.js").read_text()
    packed = base64.b64encode(gzip.compress(os.urandom(1 << 20))).decode()
    with chromium() as browser, opened(browser, "about:blank", offline=False) as page:
        first = page.evaluate(
            """async ([source, packed]) => {
                const { gunzip } = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
                const raw = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
                const timer = new Promise((done) => setTimeout(() => done("a timer"), 0));
                return Promise.race([gunzip(raw).then((whole) => whole.byteLength), timer]);
            }""",
            [source, packed],
        )
    assert first == 1 << 20


def test_letters_that_no_font_has_are_named_with_the_package_that_brings_them(tmp_path, monkeypatch):
    (tmp_path / "fc-list").write_text("#!/bin/sh\nexit 0\n")  # a machine without any font
    (tmp_path / "fc-list").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing_fonts("plain, naïve → ✔") == []
    assert missing_fonts("你好 🎉") == [("你好", "fonts-noto-cjk"), ("🎉", "fonts-noto-color-emoji")]


# ------------------------------------------------------------------------------------------------- parameters, saved


def test_parameters_are_set_behind_the_cell_that_has_them(tmp_path):
    path = notebook(tmp_path / "lab.ipynb", "%pwd\nn = 1\nm: int = 2", tags=["parameters"])
    read = nbformat.read(path, 4)
    read.cells.append(new.new_code_cell("print(n, m)"))
    nbformat.write(read, path)
    output = tmp_path / "report.html"
    assert report_notebooks([path], output, parameters={"m": 20}) == 0
    assert "1 20\n" in output.read_text() and "Given on the command line" in output.read_text()


@pytest.mark.parametrize(("tags", "sentence"), [(["parameters"], "there are: n"), ([], "none has a cell with the tag")])
def test_a_parameter_that_no_notebook_has_is_refused_before_anything_runs(tmp_path, capsys, tags, sentence):
    path = notebook(tmp_path / "lab.ipynb", "n = 1; open('ran', 'w').close()", tags=tags)
    assert report_notebooks([path], tmp_path / "report.html", parameters={"k": 3}) == 2
    assert "no parameter called k" in (said := capsys.readouterr().err) and sentence in said
    assert not (tmp_path / "ran").exists()


def saved(path: Path, *cells: str) -> Path:
    """A notebook that was run, and saved with its outputs."""
    read = nbformat.read(notebook(path, *cells), 4)
    run(path, read)
    nbformat.write(read, path)
    return path


def test_a_saved_notebook_is_reported_as_it_is_and_nothing_runs(tmp_path):
    path = saved(tmp_path / "lab.ipynb", "open('ran', 'a').write('x')", *RICH[-3:-1], "1 / 0")
    output = tmp_path / "report.html"
    assert report_notebooks([path], output, saved=True) == 1
    page = output.read_text()
    assert (tmp_path / "ran").read_text() == "x"
    assert 'class="view"' in page and "ZeroDivisionError" in page
    assert "data:image/png" not in page, "the view is alive: its picture would be the same once more"


def test_a_view_whose_recording_was_not_saved_is_seen_as_a_picture(tmp_path):
    path = saved(tmp_path / "lab.ipynb", *RICH[-3:-1])
    read = nbformat.read(path, 4)
    shown = [output for cell in read.cells for output in cell.outputs if STANDS_IN in output.get("metadata", {})]
    png = base64.b64decode(shown[0].data["image/png"])
    assert png.startswith(b"\x89PNG") and len(png) < 100_000
    del read.metadata["widgets"]
    nbformat.write(read, path)
    assert report_notebooks([path], tmp_path / "report.html", saved=True) == 0
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png" in page and 'class="view"' not in page and "needs a running kernel" not in page


def test_two_views_of_one_recording_carry_it_once(tmp_path):
    page = Page("two")
    for model in ("a", "b"):
        page.view(model, {"_esm": "export default {}", "key": model}, [(["recording"], b"the same")])
    assert len(page.views["data"]) == 1 and len(page.views["models"]) == 2


@pytest.mark.browser
def test_the_benchmark_of_the_report_has_a_row_for_time_size_and_pdf(tmp_path):
    find_or_skip()
    rows = report_cost.rows([("lab", nbformat.read(notebook(tmp_path / "lab.ipynb", "# Lab", "1 + 1"), 4))])
    assert [row.goal for row in rows] == ["<= 60 s", "<= 10 MB", "<= 60 s"]
    assert rows[1].measured == "0.0 MB" and rows[1].reached


def test_labs_that_the_benchmark_keeps_are_run_again_only_when_they_have_changed(tmp_path, monkeypatch):
    lab, kept = notebook(tmp_path / "lab.ipynb", "open('ran', 'a').write('x')"), tmp_path / "kept"
    monkeypatch.setattr(report_cost, "LABS", [lab])
    ticks = []
    for ran in ("x", "x", "xx"):
        ((name, executed),) = report_cost.run_all(lambda: ticks.append(1), kept)
        assert (name, executed.cells[0].execution_count) == ("lab", 1)
        assert (tmp_path / "ran").read_text() == ran
        if len(ticks) == 2:
            os.utime(lab, (later := (kept / "lab.ipynb").stat().st_mtime + 1, later))
    assert len(ticks) == 3


@pytest.mark.parametrize("nonsense", [5, None, Trace], ids=str)
def test_what_is_no_trace_is_not_shown_and_no_file_is_written(nonsense, tmp_path):
    for show in (watch, lambda thing: report(thing, tmp_path / "report.html")):
        with pytest.raises(TypeError, match=r"is a labkit\.Trace, not"):
            show(nonsense)
    assert not list(tmp_path.iterdir())
