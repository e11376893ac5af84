"""This repository's sessions; README's test command runs ``tests``."""

from __future__ import annotations

import os

import nox

from buildkit_tasks.nox_sessions import arch_matrix

nox.options.sessions = ["lint", "tests"]
nox.options.reuse_venv = "yes"
_GROUPS = nox.project.load_toml("pyproject.toml")

arch_matrix()


# Tests with an engine mostly wait, so there are more workers than processors.
_IN_PARALLEL = ["--numprocesses=3", "--no-loadscope-reorder"]
# Without compiled files each worker rewrites the assertions of all tests again, which takes ten seconds.
_WRITE_BYTECODE = {"PYTHONDONTWRITEBYTECODE": None}


@nox.session
def tests(session: nox.Session) -> None:
    """Run all other tests; they need PyPI and Debian's packages. In CI a missing engine is a failure."""
    _run_tests(session, "not interop", "test", "plugins")


@nox.session
def interop(session: nox.Session) -> None:
    """Run the long tests: BuildKit, buildx, crane and others, compiled here, CI pipelines and fuzzers."""
    _run_tests(session, "interop", "test", "fuzz")


def _run_tests(session: nox.Session, markers: str, *groups: str) -> None:
    session.install("-e", ".", *nox.project.dependency_groups(_GROUPS, *groups))
    strict = ["--arch-require-engine"] if os.environ.get("CI") else []
    # On Ctrl-C tests remove what they made, such as an engine and binfmt_misc handlers.
    arguments = [*strict, *_IN_PARALLEL, "-m", markers, *session.posargs]
    session.run("pytest", *arguments, env=_WRITE_BYTECODE, interrupt_timeout=300)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, the direction of imports, and names."""
    groups = nox.project.dependency_groups(_GROUPS, "test", "coverage", "lint")
    session.install("--no-compile", "-e", ".", *groups)  # most of it is never imported
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("mypy", "--platform=darwin", "buildkit_tasks")
    session.run("lint-imports")
    session.run("python", "tools/naming.py")


@nox.session
def unit(session: nox.Session) -> None:
    """Run the tests that need no root, engine or network; properties with a quarter of the examples."""
    session.install("-e", ".", *nox.project.dependency_groups(_GROUPS, "test"))
    arguments = ["--numprocesses=logical", "--hypothesis-profile=quick", "tests/unit", "tests/property"]
    session.run("pytest", *arguments, *session.posargs, env=_WRITE_BYTECODE)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests under coverage.py, child processes and supervisor too; print what they do not reach."""
    session.install("-e", ".", *nox.project.dependency_groups(_GROUPS, "test", "plugins", "coverage"))
    arguments = session.posargs or [*_IN_PARALLEL, "-m", "not interop"]
    session.run("python", "-m", "tests.coverage", *arguments, env=_WRITE_BYTECODE)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz on demand: nox -s fuzz -- --runs 1000000 tar elf."""
    session.install("-e", ".", *nox.project.dependency_groups(_GROUPS, "test", "fuzz"))
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Apply planted mutants and print which test catches each: nox -s mutants -- oci verify."""
    session.install("-e", ".", *nox.project.dependency_groups(_GROUPS, "test"))
    if "--generate" in session.posargs:
        session.install("mutmut>=3.8")
    session.run("python", "-m", "tests.mutants", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure this package and its alternatives, and check every documented limit."""
    session.install("-e", ".")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    session.install("-e", ".", *nox.project.dependency_groups(_GROUPS, "docs"))
    session.run("sphinx-build", "-W", "-b", "html", "docs", "docs/_build/html")
