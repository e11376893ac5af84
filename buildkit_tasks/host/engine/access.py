"""Explain why a Docker engine cannot be used by this user, and name the command that helps."""

from __future__ import annotations

import grp
import os
import shutil
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.privileges import command_as_root, rerun_as_root, user_name

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["absent_error", "connection_error", "is_listening", "refused_error"]

_CONNECT_SECONDS = 5.0
_TCP_PORT = 2375  # of docker's own clients, if the endpoint has none
_PROXY_VARIABLES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_SYSTEMD = Path("/run/systemd/system")  # exists if systemd manages services (sd_booted(3))


def is_listening(endpoint: str) -> bool:
    """Return True if a socket accepts connections, and for endpoints of other kinds."""
    return connection_error(endpoint) is None


def connection_error(endpoint: str) -> OSError | None:
    """Return why a unix or a TCP socket does not accept a connection; None also for other endpoints."""
    try:
        parts = urlsplit(endpoint)
        if parts.scheme == "unix":
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(parts.path)
        elif parts.scheme == "tcp" and not any(os.environ.get(name) for name in _PROXY_VARIABLES):
            address = (parts.hostname or "", parts.port or _TCP_PORT)
            socket.create_connection(address, timeout=_CONNECT_SECONDS).close()
    except ValueError:
        return None  # docker's client describes what is wrong with the endpoint
    except OSError as error:
        return error
    return None


def absent_error(endpoint: str, user_endpoints: Iterable[str]) -> EngineError:
    """Return the error for an endpoint where nothing listens.

    ``user_endpoints`` are those of this user's other engines. If there is neither another one that listens
    nor a daemon that can be started, the error has no hint.
    """
    return EngineError(f"no Docker daemon answers at {endpoint}", hint=_absent_hint(user_endpoints))


def _absent_hint(user_endpoints: Iterable[str]) -> str | None:
    if hint := _choose_endpoint(user_endpoints):
        return hint
    if shutil.which("dockerd") and _SYSTEMD.is_dir():
        return command_as_root("systemctl start docker")
    return None


def refused_error(endpoint: str, user_endpoints: Iterable[str]) -> EngineError:
    """Return the error for a daemon whose socket this user may not use.

    The hint is another engine of this user that answers, else the command that makes the user a member of
    the socket's group, else this command line as root.
    """
    group, join_command = _find_socket_group(Path(urlsplit(endpoint).path))
    audience = f"group {group}" if group else "root"
    return EngineError(
        f"permission denied: the Docker daemon at {endpoint} serves {audience}, not {user_name()}; "
        "a rootless Docker (dockerd-rootless-setuptool.sh install) or another context (docker context ls) "
        "also works",
        hint=_choose_endpoint(user_endpoints) or join_command or rerun_as_root(),
    )


def _choose_endpoint(endpoints: Iterable[str]) -> str:
    """Return the command that selects the first engine that accepts connections, or an empty string."""
    unix_endpoints = (each for each in endpoints if each.startswith("unix:"))
    usable = next(filter(is_listening, unix_endpoints), "")
    return f"export DOCKER_HOST={usable}" if usable else ""


def _find_socket_group(path: Path) -> tuple[str, str]:
    """Return the group that may use a socket, and the command to join it; empty strings if there is none."""
    try:
        status = path.stat()
        group = grp.getgrgid(status.st_gid)
    except (OSError, KeyError):
        return "", ""
    if status.st_gid == 0 or not status.st_mode & stat.S_IWGRP:
        return "", ""
    user = user_name()
    if user.isdecimal() or group.gr_gid in os.getgroups():  # no user to add, or membership does not help
        return group.gr_name, ""
    command = f"newgrp {group.gr_name}"
    if user in group.gr_mem:  # only this session began before the user joined
        return group.gr_name, command
    return group.gr_name, f"{command_as_root(f'usermod -aG {group.gr_name} {user}')} && {command}"
