"""A test that fails is run once more, from fresh fixtures, and what failed first is printed: pytest -p tests.again.

Thousands of tests that kill, stop and interrupt real processes run side by side here, on machines that stall for
seconds. When one of them fails by chance, the run must not be lost, and the failure must not be hidden: both are told,
as by CPython's own suite (`python -m test --rerun`). A test that fails twice has failed, and so has one that hangs.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

RERUN = "rerun"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    report_to = item.ihook
    report_to.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    failures = [report for report in reports if report.failed]
    if failures and not any("Timeout (>" in report.longreprtext for report in failures):
        with contextlib.suppress(Exception, pytest.fail.Exception):  # what failed may not be taken down well either
            item.session._setupstate.teardown_exact(None)
        for report in failures:
            report.outcome = RERUN  # type: ignore[assignment]
            report_to.pytest_runtest_logreport(report=report)
        item._initrequest()  # type: ignore[attr-defined]
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        report_to.pytest_runtest_logreport(report=report)
    report_to.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    return (RERUN, "R", "FAILED, RUN AGAIN") if report.outcome == RERUN else None  # type: ignore[comparison-overlap]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for report in terminalreporter.stats.get(RERUN, []):
        terminalreporter.section(f"failed, then run again: {report.nodeid}", "-")
        terminalreporter.line(report.longreprtext)
