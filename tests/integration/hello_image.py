"""A small image from scratch: its Dockerfiles, and the programs that they copy."""

from __future__ import annotations

from collections.abc import Iterable

from tests.support.project import program

TWO = ("linux/amd64", "linux/arm64")
DOCKERFILE = """\
FROM scratch
ARG TARGETARCH
COPY hello-$TARGETARCH /hello
CMD ["/hello"]
"""
# The same with a step that each platform's builder has to run.
RUN_DOCKERFILE = DOCKERFILE.replace("CMD", 'RUN ["/hello"]\nCMD')


def hello_programs(platforms: Iterable[str] = TWO) -> dict[str, bytes]:
    """Return a file ``hello-ARCHITECTURE`` for each platform: a program that exits with 0."""
    return {f"hello-{platform.split('/')[1]}": program(platform) for platform in platforms}
