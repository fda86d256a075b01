"""Clusters: engines of ipyparallel, here or on other machines.

    with cluster(n=2) as c:
        c.map(f, [1, 2, 3])          # f may be defined in the notebook
        c.client                     # ipyparallel's own Client, for everything else

All of it is ipyparallel (https://ipyparallel.readthedocs.io): a controller, to which engines and clients connect over
ZeroMQ, and launchers that start engines as processes here, by SSH, MPI, Slurm, PBS, SGE, LSF or HTCondor. Added here:
local clusters listen on 127.0.0.1, are up quickly, leave no file, and do not outlive us (labkit.leash).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import dill

from labkit.folders import own_folder
from labkit.launch import dumped

TIMEOUT = 60.0
"""Seconds until all engines must have registered."""

HEARTBEAT_MS = 200
"""An engine counts when its first heartbeat has been heard; ipyparallel's usual 3,000 ms would double the start."""

NEW = "stop it, and start a new one with cluster()"

LOST = 10.0
"""Seconds without an engine after which work that has not begun is given up. What an engine was working on when it died
the controller gives up after 5."""

CHECK = """What to check:
- is the controller running? `ipcluster list`, and its log in the folder log/ of the profile
- can this machine reach it, and the engines reach it, at the address in the connection file? By default a controller
  listens on 127.0.0.1 only: c.IPController.ip = "0.0.0.0" and c.IPController.location in ipcontroller_config.py
- are the ports open in the firewall? c.IPController.ports pins them
- do the engines start at all? Try one by hand on their machine: python -m ipyparallel.engine --debug"""


class Cluster:
    """Engines that run functions. A context manager: leaving it stops what it has started.

    Attributes:
        client: ipyparallel's Client: views, %px, everything that is not here.
    """

    def __init__(self, client: Any, where: str, stop: Callable[[], None], controller: int | None = None):
        self.client = client
        self.where = where
        """"on this machine", or by which profile or file it was found."""
        self._stop: Callable[[], None] | None = stop
        self._controller = controller  # a pidfd, where it is a process of ours

    def map(self, f: Callable[..., Any], *columns: Iterable[Any], progress: bool = True) -> list[Any]:
        """Call f(*row) for each row on whichever engine is free; returns the results in the order of the rows.

        Ctrl-C meanwhile interrupts the engines and forgets what has not begun.

        Args:
            f: as for `launch`: it may be defined in the notebook, and gets a copy of what it refers to.
            columns: as for the built-in map.
            progress: show a bar.

        Raises:
            TypeError: f cannot be sent to another process.
            ValueError: the cluster is stopped, or has no engines.
            ConnectionError: its controller has ended, on this machine, or its last engine; ipyparallel would wait for
                ever.
            ipyparallel.error.RemoteError: f raised; the text has the engine's traceback.
        """
        if self._stop is None:
            raise ValueError("this cluster is stopped: cluster() starts a new one")
        if not self.client.ids:
            raise ValueError(f"no engine is left in this cluster: {NEW}")
        rows = list(zip(*columns, strict=True))
        if not rows:
            return []
        payload = dumped(f, getattr(f, "__name__", "f"))
        view = self.client.load_balanced_view()
        running = view.map_async(_call, [payload] * len(rows), rows, chunksize=1)
        running._fname = getattr(f, "__name__", "f")  # what the bar says
        wait, seen = running.wait, time.monotonic()

        def wait_a_moment(*args: Any, **options: Any) -> Any:
            nonlocal seen
            if self.client.ids:
                seen = time.monotonic()
            elif time.monotonic() - seen > LOST:
                raise ConnectionError(f"no engine is left in this cluster, and not all is done: {NEW}")
            if self._controller is not None and select.select([self._controller], [], [], 0)[0]:
                raise ConnectionError(f"the controller of this cluster has ended: {NEW}")
            return wait(*args, **options)

        running.wait = wait_a_moment  # which is called ten times a second
        try:
            if progress:
                running.wait_interactive(widget=False)  # a saved notebook, too, shows how far a line of text came
            while not running.wait(0.1):
                pass
            return list(running.get())
        except KeyboardInterrupt:
            self.client.abort(running.msg_ids, block=False)
            self.client.send_signal(signal.SIGINT, block=False)
            raise

    def stop(self) -> None:
        """Stop what was started for it; a cluster that somebody else started goes on."""
        stop, self._stop = self._stop, None
        if stop:
            stop()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        engines = "stopped" if self._stop is None else f"{len(self.client.ids)} engines"
        return f"<cluster {self.where}, {engines}>"


def _call(payload: bytes, row: tuple[Any, ...]) -> Any:
    """On an engine."""
    return dill.loads(payload)(*row)


def cluster(
    n: int | None = None, profile: str | None = None, url_file: str | Path | None = None, timeout: float = TIMEOUT
) -> Cluster:
    """Start a cluster, or find one.

    Args:
        n: how many engines; 4 on this machine, or what the profile says.
        profile: an IPython profile whose ipcluster_config.py tells which launchers start the engines, and where:
            `ipython profile create --parallel --profile=NAME`. Without it they are processes on this machine.
        url_file: the ipcontroller-client.json of a cluster that runs already; nothing is started or stopped.
        timeout: seconds until all engines must have registered.

    Raises:
        TimeoutError: they had not, or nobody answers; the text says what to check.
        ValueError: both a profile and a file are given, there is no such profile, or n is not positive.
        FileNotFoundError: there is no such file.
    """
    if profile and url_file:
        raise ValueError("a profile starts a cluster, a url_file finds one that runs: give one of them")
    if n is not None and n < 1:
        raise ValueError(f"a cluster has at least 1 engine, not {n}")
    if url_file:
        return _found(Path(url_file), n, timeout)
    return _of_profile(profile, n, timeout) if profile else _local(n or 4, timeout)


def _local(n: int, timeout: float) -> Cluster:
    """Engines on this machine."""
    with contextlib.ExitStack() as undo:
        folder = undo.enter_context(own_folder("cluster"))
        fifo = f"{folder}/leash"
        os.mkfifo(fifo, 0o600)
        undo.callback(os.close, os.open(fifo, os.O_RDWR | os.O_CLOEXEC))
        program = [sys.executable, "-m", "labkit.leash"]
        led = [fifo, str(os.getpid())]
        # The nanny of an engine would be a process of its own; that it is dead the heartbeat tells as well.
        engine = {
            "engine_cmd": [*program, *led, "ipyparallel.engine"],
            "engine_args": ["--IPEngine.enable_nanny=False"],
        }
        config = {
            "LocalControllerLauncher": {"controller_cmd": [*program, "--sweep", *led, "ipyparallel.controller"]},
            "LocalEngineLauncher": engine,
            "LocalEngineSetLauncher": engine,
        }
        own = {"profile_dir": folder, "load_profile": False, "controller_ip": "127.0.0.1", "cluster_file": ""}
        arguments = [f"--HeartMonitor.period={HEARTBEAT_MS}"]
        made = _started(undo, n, timeout, config, controller_args=arguments, delay=0, **own)
        controller = os.pidfd_open(made.cluster.controller.pid)
        undo.callback(os.close, controller)
        return Cluster(made, "on this machine", undo.pop_all().close, controller)


def _of_profile(profile: str, n: int | None, timeout: float) -> Cluster:
    """Engines wherever the launchers of a profile start them."""
    from IPython.core.profiledir import ProfileDir, ProfileDirError
    from IPython.paths import get_ipython_dir

    try:
        ProfileDir.find_profile_dir_by_name(get_ipython_dir(), profile)
    except ProfileDirError:
        raise ValueError(
            f"there is no IPython profile {profile!r}: `ipython profile create --parallel --profile={profile}` makes "
            "one, whose ipcluster_config.py says how engines are started"
        ) from None
    with contextlib.ExitStack() as undo:
        made = _started(undo, n, timeout, {}, profile=profile)
        return Cluster(made, f"of profile {profile}", undo.pop_all().close)


def _started(undo: contextlib.ExitStack, n: int | None, timeout: float, config: dict[str, Any], **traits: Any) -> Any:
    """The client of a new cluster of ipyparallel, all of whose engines have registered."""
    import ipyparallel
    from traitlets.config import Config

    if n:
        traits["n"] = n
    made = ipyparallel.Cluster(log_level=logging.ERROR, config=Config(config), **traits)
    undo.callback(made.stop_cluster_sync)
    try:
        made.start_cluster_sync()
        client = made.connect_client_sync(timeout=timeout)
        undo.callback(client.close)
        wanted = n or sum(engines.n for engines in made.engines.values())
        client.wait_for_engines(wanted, timeout=timeout, interactive=False)
    except (TimeoutError, ipyparallel.error.TimeoutError) as reason:
        raise TimeoutError(f"the cluster was not up within {timeout:g} s ({reason}).\n{_logs(made)}{CHECK}") from None
    return client


def _logs(made: Any) -> str:
    """The last lines of what the controller and the first engines said, where that is on this machine."""
    said = []
    for path in sorted(Path(made.profile_dir, "log").glob(f"*{made.cluster_id}*"))[:3]:
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").strip().splitlines()[-5:]
            said.append("\n".join([f"{path.name} ends with:", *(f"    {line}" for line in lines)]))
    return "\n".join([*said, ""])


def _found(url_file: Path, n: int | None, timeout: float) -> Cluster:
    """A cluster that runs already."""
    import ipyparallel

    if not url_file.exists():
        raise FileNotFoundError(
            2,
            "no such connection file; a controller writes ipcontroller-client.json into security/ of its profile, "
            "and it has to be copied or shared to here",
            str(url_file),
        )
    try:
        client = ipyparallel.Client(str(url_file), timeout=timeout)
    except (TimeoutError, ipyparallel.error.TimeoutError) as reason:
        text = f"nobody answers at the addresses in {url_file} within {timeout:g} s ({reason}).\n{CHECK}"
        raise TimeoutError(text) from None
    try:
        if n:
            client.wait_for_engines(n, timeout=timeout, interactive=False)
    except (TimeoutError, ipyparallel.error.TimeoutError):
        there = len(client.ids)
        client.close()
        raise TimeoutError(f"{there} of {n} engines have registered within {timeout:g} s.\n{CHECK}") from None
    return Cluster(client, f"of {url_file}", client.close)
