"""Electron's IPC with a Node renderer: how soon a page is there, round trips of invoke, and large messages."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from labkit.bench import Row
from labkit.electron import BrowserWindow, ipc_main

RUNS = 5
PAGE = "data:text/html,<script>const { ipcRenderer } = require('electron')</script>"
SEQUENTIAL = """(async () => { const times = [];
  for (let i = 0; i < COUNT; i++) { const begun = performance.now(); await ipcRenderer.invoke("CHANNEL", i);
    times.push(performance.now() - begun); }
  return times.sort((a, b) => a - b)[COUNT >> 1]; })()"""
PIPELINED = """(async () => { const begun = performance.now();
  await Promise.all(Array.from({ length: COUNT }, (_, i) => ipcRenderer.invoke("CHANNEL", i)));
  return COUNT / (performance.now() - begun) * 1000; })()"""
LARGE = """(async () => { const value = VALUE; const begun = performance.now();
  const back = await ipcRenderer.invoke("plain", value);
  if (back.length !== value.length) throw new Error("it came back as another");
  return performance.now() - begun; })()"""


async def answer(event: Any, value: Any) -> Any:
    return value


def script(window: BrowserWindow, code: str, count: int, channel: str = "plain") -> float:
    code = code.replace("COUNT", str(count)).replace("CHANNEL", channel)
    return float(window.web_contents.execute_java_script(code).result(120))


def start() -> float:
    """Milliseconds from the call until the page has loaded."""
    begun = time.perf_counter()
    with BrowserWindow(web_preferences={"contextIsolation": False}) as window:
        window.load_url(PAGE).result(60)
        return (time.perf_counter() - begun) * 1000


def run(progress: Callable[[], None], count: int = 3000) -> list[Row]:
    ipc_main.handle("plain", lambda event, value: value)
    ipc_main.handle("async", answer)
    rows: dict[str, list[float]] = {}
    try:
        for _ in range(RUNS):
            rows.setdefault("start", []).append(start())
            with BrowserWindow(web_preferences={"contextIsolation": False}) as window:
                window.load_url(PAGE).result(60)
                script(window, PIPELINED, count)  # warm up
                for channel in ("plain", "async"):
                    rows.setdefault(f"one {channel}", []).append(script(window, SEQUENTIAL, count, channel))
                    rows.setdefault(f"many {channel}", []).append(script(window, PIPELINED, count, channel))
                rows.setdefault("string", []).append(script(window, LARGE.replace("VALUE", "'x'.repeat(3 << 20)"), 1))
                rows.setdefault("bytes", []).append(
                    script(window, LARGE.replace("VALUE", "new Uint8Array(3 << 20)"), 1)
                )
            progress()
    finally:
        ipc_main.remove_handler("plain")
        ipc_main.remove_handler("async")
    middle = {name: statistics.median(values) for name, values in rows.items()}
    found = [Row("window to loaded page", f"{middle['start']:.0f} ms", "<= 500 ms", middle["start"] <= 500)]
    for channel, words in (("plain", "plain handler"), ("async", "async handler")):
        one, many = middle[f"one {channel}"], middle[f"many {channel}"]
        found.append(Row(f"invoke, {words}, half within", f"{one:.3f} ms", "<= 0.3 ms", one <= 0.3))
        found.append(Row(f"invoke, {words}, pipelined", f"{many:,.0f}/s", ">= 5,000/s", many >= 5000))
    for name, words in (("string", "string of 3 Mi characters"), ("bytes", "Uint8Array of 3 MiB")):
        found.append(Row(f"{words}, there and back", f"{middle[name]:.0f} ms", "", True))
    return found
