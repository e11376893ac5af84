"""Show one line per finished test file: its outcomes and seconds, how many tests ran, and the time left.

The time left is known if the files ran before: their seconds are kept in pytest's cache.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import pytest

_CACHE_KEY = "buildkit-tasks/seconds"
_MIN_SECONDS_LEFT = 30


@pytest.hookimpl(trylast=True)  # after the terminal reporter is registered
def pytest_configure(config: pytest.Config) -> None:
    """Register the display in the process that has the terminal, unless pytest is to be quiet or verbose."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(config, "workerinput") and config.get_verbosity() == 0:
        config.pluginmanager.register(FileProgress(reporter, config))


class FileProgress:
    """Replaces the terminal reporter's dots."""

    def __init__(self, reporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        reporter.showfspath = False
        reporter._show_progress_info = False
        self._reporter, self._config = reporter, config
        self._known_seconds: dict[str, float] = config.cache.get(_CACHE_KEY, {}) if config.cache else {}
        self._total, self._finished = 0, 0
        self._pending: Counter[str] = Counter()
        self._outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._expect(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        if not self._total:
            self._expect(ids)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Count a test without a letter for it."""
        outcome = _classify(report)
        return (outcome, "", "") if outcome else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        path = _path(report.nodeid)
        self._seconds[path] += report.duration
        if outcome := _classify(report):
            self._outcomes[path][outcome] += 1
        if report.failed:
            self._reporter.write_line(f"FAILED {report.nodeid}", red=True)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        path = _path(nodeid)
        self._finished += 1
        self._pending[path] -= 1
        if not self._pending[path]:
            del self._pending[path]
            self._reporter.write_line(self._describe(path))

    def pytest_sessionfinish(self) -> None:
        if self._config.cache:
            self._config.cache.set(_CACHE_KEY, self._known_seconds | dict(self._seconds))

    def _expect(self, nodeids: Iterable[str]) -> None:
        self._pending = Counter(map(_path, nodeids))
        self._total = self._pending.total()

    def _describe(self, path: str) -> str:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in self._outcomes[path].items())
        line = f"{path:<60} {outcomes:>14} {self._seconds[path]:6.1f} s"
        return f"{line}  {self._finished:>6,} of {self._total:,}{self._describe_time_left()}"

    def _describe_time_left(self) -> str:
        if not self._known_seconds.keys() >= self._pending.keys():
            return ""
        workers = self._config.getoption("numprocesses", None) or 1
        seconds = (
            sum(max(0.0, self._known_seconds[path] - self._seconds[path]) for path in self._pending) / workers
        )
        return f", about {seconds / 60:.0f} min left" if seconds >= _MIN_SECONDS_LEFT else ""


def _classify(report: pytest.TestReport) -> str | None:
    """Return the outcome that a report of a test's setup, call or teardown decides, or None."""
    if report.when == "call" or report.skipped:
        return report.outcome
    return "error" if report.failed else None


def _path(nodeid: str) -> str:
    return nodeid.partition("::")[0]
