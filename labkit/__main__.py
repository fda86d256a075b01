"""The `labkit` command: open the labs, look at the machine, clean up, make reports. Also `python -m labkit`.

Only typer is imported before a command runs, so that `labkit --help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    help="Labs on inter-process communication: real processes, real kernel mechanisms, every message visible.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

START_PAGE = "notebooks/00-start-here.ipynb"


@app.command()
def lab(
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port on this machine; 0 takes any free one.")] = 8888,
    browser: Annotated[
        str, typer.Option(help='Command of the browser to open; "none" opens none and prints the address.')
    ] = "",
    folder: Annotated[Path | None, typer.Option(help="Folder that holds notebooks/; found by itself.")] = None,
) -> None:
    """Open JupyterLab on the start page."""
    root = _root(folder)
    if port and _taken(port):
        _fail(
            f"Port {port} is taken on this machine: choose another with --port (0 takes any free one; make lab PORT=0)."
        )
    address = START_PAGE if (root / START_PAGE).exists() else "notebooks"
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", f"--LabApp.default_url=/lab/tree/{address}"]
    if browser.lower() == "none":
        command += ["--no-browser"]
    elif browser:
        command += [f"--ServerApp.browser={browser}"]
    _become(command, root)


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Tell what this machine and container allow, and what a lab loses without it."""
    from labkit.doctor import describe_machine
    from labkit.doctor import doctor as examine

    findings = examine()
    if json:
        from dataclasses import asdict
        from json import dumps

        print(dumps([asdict(finding) for finding in findings], indent=2))
        return

    from rich.console import Console
    from rich.table import Table

    colour = {"good": "green", "limited": "yellow", "missing": "red"}
    table = Table(title=describe_machine(), title_justify="left", show_lines=False, expand=False)
    for heading in ("", "what", "found", "what a lab loses without it"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = f"[{colour[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(mark, finding.what, finding.found, finding.without if finding.verdict != "good" else "")
    Console().print(table)
    poor = [finding for finding in findings if finding.verdict != "good"]
    print(
        f"{len(findings) - len(poor)} of {len(findings)} good."
        + (" Everything the labs use is here." if not poor else "")
    )


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="List only, remove nothing.")] = False,
) -> None:
    """List what labkit left behind, then remove what nobody uses."""
    from labkit.clean import hidden_processes, leftovers, remove

    try:
        found = leftovers()
    except OSError as refused:
        _fail(f"{refused.strerror}: {refused.filename}")
    if hidden := hidden_processes():
        print(f"{hidden} processes of other users could not be looked into; what only they use counts as unused.")
    if not found:
        print("Nothing left behind.")
        return

    from rich.console import Console
    from rich.table import Table

    table = Table("what", "name", "bytes", "state", "")
    for one in found:
        size = "" if one.size is None else f"{one.size:,}"
        table.add_row(one.kind, one.name, size, one.state, "[yellow]remove[/]" if one.removable else "keep")
    Console().print(table)
    unused = [one for one in found if one.removable]
    if not unused:
        print("All of it is in use: nothing to remove.")
    elif dry_run:
        print(f"{len(unused)} would be removed; nothing was.")
    elif yes or typer.confirm(f"Remove {len(unused)}?"):
        removed = sum(_removed(remove, one) for one in unused)
        print(f"{removed} removed.")
        raise typer.Exit(removed < len(unused))


@app.command("ls")
def list_objects(
    kinds: Annotated[
        list[str] | None, typer.Argument(help='Kinds, or how they begin: "System V", "POSIX queue", fifo, tcp ...')
    ] = None,
    inside: Annotated[
        int | None, typer.Option(help="As seen by this process, in its namespaces.", metavar="PID")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the IPC objects of this machine: who uses them, and which look abandoned."""
    from labkit.objects import objects

    if inside is None:
        found = objects()
    else:
        from labkit.isolation import those_of
        from labkit.launch import RemoteError

        try:
            found = those_of(inside).run(objects)
        except (OSError, RemoteError) as refused:
            _fail(f"the namespaces of process {inside} cannot be entered: {str(refused).splitlines()[-1]}.")
    try:
        found = found.of(*kinds) if kinds else found
    except ValueError as wrong:
        _fail(f"{wrong}.")
    if json:
        from json import dumps

        print(dumps({"objects": found.rows(), "unseen": found.unseen}, indent=2))
        return

    print(found)
    abandoned = sum(bool(one.abandoned) for one in found)
    print(f"{len(found)} objects" + (f", {abandoned} of them look abandoned." if abandoned else "."))
    for sentence in found.unseen:
        print(f"Not seen: {sentence}.")


@app.command()
def report(
    notebooks: Annotated[
        list[Path] | None, typer.Argument(help="Notebooks to run and report; all labs when none is given.")
    ] = None,
    to: Annotated[str, typer.Option(help="html (one file, works offline) or pdf.")] = "html",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="NAME=VALUE", help='Set a name of the cell with the tag "parameters".'),
    ] = None,
    saved: Annotated[
        bool, typer.Option("--saved", help="As they were saved, with their outputs; run nothing.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Two reports or saved traces (.html .parquet .csv) side by side.")
    ] = False,
    title: Annotated[str | None, typer.Option(help="Of the page; the first heading unless given.")] = None,
    browser: Annotated[str | None, typer.Option(help="The Chromium that prints a PDF; found by itself.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one cell may take.")] = 600,
) -> None:
    """Run notebooks and write one report. Where a cell fails the report shows it and the exit status is 1."""
    if to not in ("html", "pdf"):
        _fail(f'A report is "html" or "pdf", not {to!r}: use --to html.')
    if compare and len(notebooks or []) != 2:
        _fail("Two files are compared: labkit report --compare A.html B.html")
    values = dict(_value(text) for text in parameter or [])
    paths = notebooks or sorted((_root(None) / "notebooks").glob("[0-9]*.ipynb"))
    if not paths:
        _fail("There is no numbered notebook in notebooks/: name the ones to report.")
    if missing := [str(path) for path in paths if not path.is_file()]:
        _fail(f"No such {'file' if compare else 'notebook'}: {', '.join(missing)}. Check the path.")
    output = output or Path(f"reports/{'comparison' if compare else 'ipclab'}.{to}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        _fail(f"{output.parent} cannot be made ({refused.strerror}): choose another file with -o.")
    from labkit.report import report_comparison, report_notebooks

    if compare:
        raise typer.Exit(report_comparison(paths[0], paths[1], output, to, browser))
    raise typer.Exit(report_notebooks(paths, output, to, timeout, browser, title, values, saved))


def _value(text: str) -> tuple[str, Any]:
    """NAME=VALUE; a value that is no Python literal is a text, as it stands."""
    from ast import literal_eval

    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        _fail(f"A parameter is NAME=VALUE, not {text!r}: for example -p n=10000.")
    try:
        return name, literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


@app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Which ones: import, launch, channels, trace, events, view, report, queue, electron, sweep; all "
            "when none is named."
        ),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Of report: keep the executed labs here, and run only what has changed since.")
    ] = None,
) -> None:
    """Run benchmarks: medians of paired runs, beside their goals."""
    from labkit.bench import main

    try:
        raise typer.Exit(main(names or [], keep))
    except ValueError as wrong:
        _fail(f"{wrong}.")


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    print(f"ipclab {installed('ipclab')}")


def _root(folder: Path | None) -> Path:
    """The folder that holds notebooks/: the given one, the current one or one above it, or that of the package."""
    here = Path.cwd()
    candidates = [folder] if folder else [here, *here.parents, Path(__file__).resolve().parents[1]]
    for candidate in candidates:
        if any((candidate / "notebooks").glob("[0-9]*.ipynb")):
            return candidate.resolve()
    where = f"in {folder}" if folder else "here, above, or beside the package"
    _fail(
        f"There is no notebooks/ folder {where}: the labs come with the repository, so clone it and run make lab there."
    )


def _taken(port: int) -> bool:
    """Whether somebody listens on the port of this machine."""
    import errno
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as refused:
            if refused.errno == errno.EACCES:
                _fail(f"Port {port} needs privileges: choose one above 1023 with --port.")
            return refused.errno == errno.EADDRINUSE
    return False


def _become(command: list[str], folder: Path) -> NoReturn:
    """Replace this process by the command, so that Ctrl-C and signals reach it directly: execve(2)."""
    import os

    if os.geteuid() == 0:
        command.append("--allow-root")
    # JupyterLab's own settings for the labs: no pop-up about news over the first one. And no jupytext, which would not
    # open a notebook that was edited where its twin in notebooks/py is not known, in VS Code for instance.
    ours = str(Path(__file__).with_name("jupyter"))
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, [ours, os.environ.get("JUPYTER_CONFIG_PATH")]))
    os.chdir(folder)
    sys.stdout.flush()
    os.execv(command[0], command)


def _removed(remove: Any, leftover: Any) -> bool:
    try:
        return bool(remove(leftover))
    except OSError as refused:
        print(f"{leftover.name} stays: {refused}", file=sys.stderr)
        return False


def _fail(sentence: str) -> NoReturn:
    """End with one sentence that says what to do next."""
    print(f"labkit: {sentence}", file=sys.stderr)
    raise typer.Exit(2)


if __name__ == "__main__":
    app(prog_name="labkit")
