from __future__ import annotations

import fcntl
import io
import os
import struct
import termios
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

import pytest

from buildkit_tasks import report as renderers
from buildkit_tasks.report.model import (
    BuildResult,
    EmulatorSummary,
    ImageReport,
    ImagesReport,
    MatrixReport,
    Outcome,
    Output,
    PlatformSetup,
    Report,
    RunReport,
    VerifyReport,
)
from buildkit_tasks.report.steps import list_steps
from tests.support.report_samples import (
    TEN,
    TWO,
    bad_check,
    bad_run,
    both_cpus,
    build,
    digest,
    good_check,
    good_run,
    matrix,
    on_cpu,
    run,
    setup,
    stopped,
    three_commands,
    verdict,
    verify,
    warning,
)
from tests.unit.report.rendering import FAILED_ON_ONE_CPU, UNLIMITED, draw, half_failed, rows, table_rows

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_warnings_below_table() -> None:
    report = verify(
        verdict("linux/amd64", warning("one")), verdict("linux/arm64", warning("a\nb"), warning("c"))
    )
    text = draw(report)
    assert "│ ok, 1 warning " in rows(text)[0]
    assert "│ ok, 2 warnings │" in rows(text)[1]
    assert "  2 of 2 platforms verified, 3 warnings.\n" in text
    assert "\nWARNING verify linux/amd64 parity\n  | one\n" in text
    assert text.endswith("\nWARNING verify linux/arm64 parity\n  | a\n  | b\n  | c\n")


def test_warning_colour() -> None:
    report = verify(verdict("linux/amd64"), verdict("linux/arm64", warning()))
    text = draw(report, colour=True)
    for part in (
        "ok, 1 warning",
        "  2 of 2 platforms verified, 1 warning.",
        "WARNING verify linux/arm64 parity",
    ):
        assert f"\x1b[33m{part}" in text
    assert "\x1b[32mok " in text
    for text in (renderers.to_html(report), renderers.to_svg(report)):
        assert 'warning">ok, 1 warning<' in text
        assert 'good">ok<' in text


def test_failure_and_warning() -> None:
    report = verify(verdict("linux/amd64", warning(), bad_check(message="wrong")), verdict("linux/arm64"))
    text = draw(report)
    assert "│ FAILED wrong │" in rows(text)[0]
    assert "1 of 2 platforms verified, 1 warning. FAILED: linux/amd64 (verify)." in text
    assert text.index("\nFAILED verify linux/amd64") < text.index("\nWARNING verify linux/amd64 parity")
    assert renderers.to_markdown(report).startswith("## verify: FAILED\n")


def test_matrix_counts_warnings() -> None:
    report = replace(matrix(), verify=verify(*(verdict(name, warning()) for name in TWO)))
    assert "  2 of 2 platforms passed: built, verified and run, with 2 warnings.\n" in draw(report)
    assert renderers.to_markdown(report).startswith("## arch-matrix: ok, 2 warnings\n")


def test_long_warning_is_truncated() -> None:
    report = verify(verdict("linux/arm64", warning("\n".join(f"line {n}." for n in range(100)))))
    text = draw(report)
    assert "line 9." in text
    assert "line 10." not in text
    assert "(90 more lines: a --report file has them all)" in text
    for render in UNLIMITED:
        assert "line 99." in render(report)


def test_table_row_per_cpu() -> None:
    assert [row[:4] for row in table_rows(FAILED_ON_ONE_CPU)] == [
        ["linux/amd64", "native", "max", "ok: Hello from amd64"],
        ["linux/amd64", "qemu-amd64 10.0.2", "qemu64", "ok: Hello from amd64"],
        ["linux/arm/v6", "qemu-arm 10.0.2", "max", "ok: Hello from arm"],
        ["linux/arm/v6", "qemu-arm 10.0.2", "arm1176", "FAILED illegal-instruction: no GOARM=6"],
    ]


def test_table_row_per_command() -> None:
    assert [row[2] for row in table_rows(three_commands())] == [
        "(the image's own)", "uname -m", "/bin/true -x",
    ] * 2  # fmt: skip
    assert "CPU" not in draw(three_commands())


def test_one_cpu_or_command() -> None:
    report = run(replace(on_cpu("arm1176", good_run("linux/arm/v6")), command="uname -m"))
    assert table_rows(report)[0][2] == "arm1176"
    assert "uname" not in draw(report)
    assert "CPU" not in draw(run(replace(good_run("linux/arm/v6"), command="uname -m")))


def test_matrix_row_per_run() -> None:
    report = replace(matrix("linux/amd64", "linux/arm/v6"), run=FAILED_ON_ONE_CPU)
    lines = table_rows(report)
    assert [(row[0], row[1], bool(row[2]), row[3], row[4]) for row in lines] == [
        ("linux/amd64", "native", True, "ok", "max"),
        ("linux/amd64", "qemu-amd64 10.0.2", False, "", "qemu64"),
        ("linux/arm/v6", "qemu-arm 10.0.2", True, "ok", "max"),
        ("linux/arm/v6", "qemu-arm 10.0.2", False, "", "arm1176"),
    ]


def test_matrix_row_without_run() -> None:
    report = replace(matrix("linux/amd64", "linux/arm/v6", "linux/386"), run=FAILED_ON_ONE_CPU)
    assert table_rows(report)[-1][4:] == ["-", "-", "-"]
    assert "linux/386 (left out of run)" in draw(report)


def test_equal_outcomes_are_not_noted() -> None:
    failed = [on_cpu(cpu, bad_run("linux/386")) for cpu in ("", "x1")]
    for report in (both_cpus(), run(*failed)):
        assert ": passed on" not in draw(report)
        assert ": failed on" not in draw(report)
    assert "0 of 1 platform ran as expected. FAILED: linux/386 (run)." in draw(run(*failed))


def test_cpu_difference_names_command() -> None:
    report = run(
        *(replace(good_run("linux/386"), command=command) for command in ("a", "b")),
        replace(on_cpu("x1", bad_run("linux/386")), command="b"),
    )
    assert "  linux/386: b: passed on max, failed on x1\n" in draw(report)


def test_summary_line_names_failed_run() -> None:
    bad = [replace(bad_run("linux/arm64"), command=command) for command in ("x", "y")]
    assert "FAILED: linux/arm64 (run: x)." in draw(three_commands(bad[0]))
    assert "FAILED: linux/arm64 (run: x and 1 more)." in draw(three_commands(*bad))
    long = replace(bad[0], command="z" * 500)
    assert f"FAILED: linux/arm64 (run: {'z' * 55}...)." in draw(three_commands(long))


def test_failed_platform_is_not_left_out() -> None:
    extra = verdict("linux/s390x", bad_check(name="expected", message="not expected"))
    report = replace(matrix(), verify=verify(*map(verdict, TWO), extra))
    problems = [
        problem.kind for step in list_steps(report) for case in step.rows for problem in case.problems
    ]
    assert problems == ["expected"]
    assert "2 of 3 platforms passed. FAILED: linux/s390x (verify)." in draw(report)


def test_platform_without_checks() -> None:
    report = verify(verdict("linux/amd64"), replace(verdict("linux/arm64"), checks=()))
    assert "│ FAILED nothing was checked for linux/arm64 │" in rows(draw(report))[1]
    assert "1 of 2 platforms verified. FAILED: linux/arm64 (verify)." in draw(report)


def test_matrix_of_ten_platforms() -> None:
    text = draw(matrix(*TEN))
    assert [row.split()[1] for row in rows(text)] == list(TEN)
    assert text.endswith("  10 of 10 platforms passed: built, verified and run.\n")


def test_matrix_row() -> None:
    native, emulated = (row.split("│")[1:-1] for row in rows(draw(matrix())))
    short = digest("linux/amd64").removeprefix("sha256:")[:12]
    assert [cell.strip() for cell in native] == [
        "linux/amd64", "native", short, "ok", "ok: Hello from amd64", "0.25",
    ]  # fmt: skip
    assert emulated[1].strip() == "qemu-aarch64 10.0.2"


def test_matrix_row_of_failure() -> None:
    report = replace(
        half_failed(),
        verify=verify(
            verdict("linux/amd64"),
            verdict("linux/arm64", good_check(), bad_check(message="first"), bad_check(message="second")),
        ),
    )
    good, bad = rows(draw(report))
    assert "FAILED" not in good
    assert "FAILED first" in bad
    assert "FAILED it printed something else" in bad


def test_summary_line_names_failures() -> None:
    assert "  1 of 2 platforms passed. FAILED: linux/arm64 (verify).\n" in draw(half_failed())


def test_summary_line_of_failed_build() -> None:
    error = 'linux/arm64: build failed: target stage "x" not found'
    assert f"passed. Stopped: {error}\n" in draw(replace(stopped(error), verify=None, build=None))


def test_summary_line_of_stop() -> None:
    assert "  0 of 2 platforms passed. Stopped before the end of verify: refused\n" in draw(
        stopped("refused\nmore")
    )


def test_summary_line_of_left_out() -> None:
    report = replace(matrix(), run=run(good_run("linux/amd64")))
    assert "1 of 2 platforms passed. FAILED: linux/arm64 (left out of run)." in draw(report)


@pytest.mark.parametrize("order", [1, -1])
def test_duplicate_platform_shows_failure(order: int) -> None:
    verdicts = (verdict("linux/arm64"), verdict("linux/arm64", bad_check(message="the other")))
    report = replace(matrix("linux/arm64"), verify=verify(*verdicts[::order]))
    assert "FAILED the other" in rows(draw(report))[0]
    assert "0 of 1 platform passed" in draw(report)


def test_unexpected_platform_has_row() -> None:
    report = replace(matrix(), verify=verify(*map(verdict, (*TWO, "linux/s390x"))))
    assert [row.split()[1] for row in rows(draw(report))] == [*TWO, "linux/s390x"]


def test_missing_handler() -> None:
    text = draw(setup(PlatformSetup(platform="linux/arm64", native=False, message="do this")))
    assert "not registered" in rows(text)[0]
    assert "FAILED do this" in rows(text)[0]
    assert "FAILED setup linux/arm64 not-registered" in text


def test_matrix_without_setup() -> None:
    report = replace(matrix(), setup=None)
    native, emulated = rows(draw(report))
    assert "native" in native
    assert "qemu-aarch64 10.0.2" in emulated


def test_unknown_emulator() -> None:
    result = replace(good_run("linux/arm64"), emulator=None)
    assert "│ emulated" in rows(draw(run(result)))[0]
    assert "│ native" in rows(draw(run(good_run("linux/amd64"))))[0]


def test_long_cell_is_truncated() -> None:
    row = rows(draw(run(good_run("linux/arm64", stdout="x" * 100))))[0]
    assert f"ok: {'x' * 41}..." in row


def test_long_output_is_truncated() -> None:
    text = draw(run(bad_run("linux/arm64", stdout="\n".join(f"line {n}." for n in range(100)))))
    assert "(60 lines before these: a --report file has them all)" in text
    assert "line 59." not in text
    assert "line 60." in text


def test_rich_markup_is_text() -> None:
    text = "[red]x[/red] :tada:"
    assert f"ok: {text}" in draw(run(good_run("linux/arm64", stdout=text)))
    assert f"\n  | {text}\n" in draw(run(bad_run("linux/arm64", message=text)))
    assert f"Stopped before the end of verify: {text}\n" in draw(stopped(text))


def test_colour_is_opt_in() -> None:
    assert "\x1b[32mok" in draw(matrix(), colour=True)
    assert "\x1b[1;31mFAILED" in draw(half_failed(), colour=True)
    assert "\x1b" not in draw(half_failed())


def test_file_has_no_wrapped_rows() -> None:
    report = run(*(good_run(name, stdout="w " * 60) for name in TEN))
    assert len(rows(draw(report))) == len([line for line in draw(report).splitlines() if "│" in line]) - 1


def test_narrow_table_is_wrapped() -> None:
    text = draw(matrix(*TEN), width=90)
    table = [line for line in text.splitlines() if line.startswith("│")]
    assert max(map(len, table)) <= 90
    assert "linux/mips64le" in text


def test_wrapped_cell_is_no_command() -> None:
    text = draw(run(good_run("::error::platform", stdout="x " * 30 + "::add-mask::x")), width=70)
    assert "::error::platform" in text
    assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]


def test_failure_is_no_command() -> None:
    command = "::stop-commands::x"
    report = run(bad_run(f"a\n{command}", stdout=f"a\n {command}", stderr=command, message=f"\n{command}"))
    text = draw(report)
    assert text.count(command) >= 4
    assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]


def test_ascii_file() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    renderers.print_table(run(good_run("linux/arm64", stdout="grüße")), file, colour=False)
    text = raw.getvalue().decode("ascii")
    assert "ok: gr\\xfc\\xdfe" in text
    assert "| linux/arm64 |" in text


@pytest.fixture
def terminal() -> Iterator[TextIO]:
    """Return a terminal of 80 columns."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    # The output must be read: a full terminal blocks its writer.
    with os.fdopen(master, "rb", buffering=0), os.fdopen(slave, "w", encoding="utf-8") as file:
        yield file


def test_terminal_width(terminal: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    from buildkit_tasks.report import terminal as terminal_module

    monkeypatch.delenv("CI", raising=False)
    assert terminal_module._terminal_width(terminal) == 80
    monkeypatch.setenv("CI", "true")
    assert terminal_module._terminal_width(terminal) >= 120


def test_needs_colour(terminal: TextIO) -> None:
    assert renderers.needs_colour(terminal, {})
    assert not renderers.needs_colour(terminal, {"CI": "true"})
    assert not renderers.needs_colour(terminal, {"NO_COLOR": "1"})
    assert not renderers.needs_colour(io.StringIO(), {})


def test_empty_reports() -> None:
    failed = BuildResult(digest="", outputs=(), platforms=(), builder="", bases="", seconds=0, ok=False)
    empty: list[tuple[Report, str]] = [
        (VerifyReport(subject="x", digest="", platforms=()), "no platform was checked in x"),
        (RunReport(subject="x", results=()), "no platform was checked in x"),
        (MatrixReport(), "Stopped before the end of setup: no error was given"),
        (failed, "the build failed"),
    ]
    for report, message in empty:
        assert message in draw(report)


def test_emulator_without_version() -> None:
    result = replace(good_run("linux/arm64"), emulator=EmulatorSummary(path="/opt/qemu-aarch64"))
    assert "│ qemu-aarch64 │" in rows(draw(run(result)))[0]


def test_failed_stands_once() -> None:
    text = draw(run(bad_run("linux/386", stdout="the last line\n", message="expected 7\nand more")))
    (row,) = rows(text)
    assert "FAILED expected 7 " in row
    assert "\nFAILED run linux/386\n" in text
    assert "the last line" not in row


@pytest.mark.parametrize(("stdout", "cell"), [("why\n", "FAILED why"), ("", "FAILED")])
def test_cell_without_cause(stdout: str, cell: str) -> None:
    report = run(bad_run("linux/386", stdout=stdout, message=""))
    assert table_rows(report)[0][2] == cell


def test_other_outcome_is_named() -> None:
    report = run(bad_run("linux/386", Outcome.TIMEOUT, message="not ended after 2 s"))
    assert table_rows(report)[0][2] == "FAILED timeout: not ended after 2 s"
    assert "\nFAILED run linux/386 timeout\n" in draw(report)


@pytest.mark.parametrize(
    ("report", "count"),
    [
        (verify(verdict("linux/386")), "1 of 1 platform verified"),
        (verify(verdict("linux/386"), verdict("linux/arm64", bad_check())), "1 of 2 platforms verified"),
        (ImagesReport(images=(ImageReport(name="web", error="no"),)), "0 of 1 image passed"),
    ],
)
def test_count_in_singular(report: Report, count: str) -> None:
    assert f"  {count}" in draw(report)


@pytest.mark.parametrize(
    ("output", "note"),
    [
        (Output(type="oci", dest="dist/a.tar"), "image: oci-archive:dist/a.tar sha256:1"),
        (Output(type="oci", dest="out", unpacked=True), "image: oci:out sha256:1"),
        (Output(type="docker", dest="a.tar"), "image: docker-archive:a.tar sha256:1"),
        (Output(type="docker", ref="q:1"), "image: docker-daemon:q:1 sha256:1"),
        (
            Output(type="registry", ref="r.example/q@sha256:1"),
            "image: docker://r.example/q@sha256:1",
        ),
        (
            Output(type="local", dest="out"),
            "output: out, a folder of files, not an image; verify-arch dir:out",
        ),
        (Output(type="tar", dest="b.tar"), "output: b.tar, a tar archive of files, not an image"),
        (Output(type="image", ref="q:1"), "output: q:1, only in the store of the builder"),
    ],
)
def test_output_names(output: Output, note: str) -> None:
    report = replace(build(), outputs=(output, Output(type="tar", dest="x.tar")), digest="sha256:1")
    assert draw(report).count(" sha256:1\n") == note.endswith(" sha256:1")
    assert note in draw(report)
    assert "x.tar, a tar archive" in draw(report)


def test_width_of_terminal_without_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    from buildkit_tasks.report import terminal as terminal_module

    class Console(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("CI", raising=False)
    assert terminal_module._terminal_width(Console()) >= 120
