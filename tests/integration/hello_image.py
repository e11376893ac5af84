"""Dockerfiles of small images, and the programs that they copy."""

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
# The same with a step that the builder has to run, so that it needs an emulator or a native node.
RUN_DOCKERFILE = DOCKERFILE.replace("CMD", 'RUN ["/hello"]\nCMD')
# A step sees the network of its node, so the local addresses in /node identify the node that ran it.
ADDRESSES_DOCKERFILE = """\
FROM alpine:latest
RUN cp /proc/net/fib_trie /node
"""


def hello_programs(platforms: Iterable[str] = TWO) -> dict[str, bytes]:
    """Return a file ``hello-ARCHITECTURE`` for each platform: a program that exits with 0."""
    return {f"hello-{platform.split('/')[1]}": program(platform) for platform in platforms}
