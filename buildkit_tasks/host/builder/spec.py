"""The builder that the settings require: its driver, its nodes and their buildkitd configuration.

The names are those of ``docker buildx create``. Every value is validated before it is passed to a program.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import BUILDER_NAME_PATTERN
from buildkit_tasks.errors import UsageError
from buildkit_tasks.host.builder.buildkitd_config import has_buildkitd_settings, render_buildkitd_toml
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.system.csv_fields import parse_csv_row
from buildkit_tasks.system.files import expand_home

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from buildkit_tasks.config.settings import Settings

__all__ = [
    "DEFAULT_IMAGE",
    "MANAGED_DRIVERS",
    "REMOTE_DRIVERS",
    "TLS_OPTIONS",
    "BuilderSpec",
    "NodeSpec",
    "parse_driver_opts",
    "split_driver_opts",
]

DEFAULT_IMAGE = "moby/buildkit:buildx-stable-1"
REMOTE_DRIVERS = ("remote", "kubernetes")  # BuildKit does not run in a Docker engine
MANAGED_DRIVERS = ("docker-container", "kubernetes")  # buildx starts and configures BuildKit

# The name of a docker context, or a URL that buildx supports; never something like an option.
_ENDPOINT_PATTERN = re.compile(
    r"(?:[a-zA-Z0-9][a-zA-Z0-9_.+-]*|tcp://[^\s\"',/:]+:[0-9]{1,5}|tcp://\[[0-9a-fA-F:]+\]:[0-9]{1,5}"
    r"|(?:unix|ssh|npipe|docker-container|kube-pod)://[^\s\"',]+)\Z",
    re.ASCII,
)
# The keys of --node for TLS files, and the options of the driver `remote` that they set.
_TLS_OPTION_OF_KEY = {"ca": "cacert", "cert": "cert", "key": "key"}
TLS_OPTIONS = (*_TLS_OPTION_OF_KEY.values(), "servername")  # any of them enables TLS
_NODE_KEYS = ("name", "endpoint", "platform", "platforms", "driver-opt", "servername", *_TLS_OPTION_OF_KEY)
_REPEATABLE_KEYS = ("platform", "platforms", "driver-opt")
_NO_ENDPOINT = "the driver remote needs the endpoint of each BuildKit"
_NODE_HINT = "--node name=NAME,endpoint=tcp://HOST:PORT,platform=linux/arm64,ca=FILE,cert=FILE,key=FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """A node: the endpoint of its daemon, its platforms (none: the native ones) and its driver options.

    ``driver_opts`` are ``NAME=VALUE``, TLS files included.
    """

    name: str = ""
    endpoint: str = ""
    platforms: tuple[Platform, ...] = ()
    driver_opts: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> NodeSpec:
        """Parse ``--node``: CSV of ``name=``, ``endpoint=``, ``platform=``, TLS files and ``driver-opt=``.

        Raise :class:`UsageError` for an unknown key, an invalid value or a missing file.
        """
        pairs = list(_parse_pairs(text))
        values = {key: value for key, value in pairs if key not in _REPEATABLE_KEYS}
        if len(values) != sum(key not in _REPEATABLE_KEYS for key, _ in pairs):
            raise UsageError(f"node {text!r} repeats a key", hint=_NODE_HINT)
        name, endpoint = values.get("name", ""), values.get("endpoint", "")
        if not BUILDER_NAME_PATTERN.match(name):
            raise UsageError(f"node {text!r}: {name!r} is not a valid node name", hint=_NODE_HINT)
        if endpoint and not _ENDPOINT_PATTERN.match(endpoint):
            raise UsageError(f"node {name}: {endpoint!r} is not a valid endpoint", hint=_NODE_HINT)
        return cls(
            name=name,
            endpoint=endpoint,
            platforms=parse_platforms(value for key, value in pairs if key.startswith("platform")),
            driver_opts=(
                *_parse_tls_options(name, values),
                *(value for key, value in pairs if key == "driver-opt"),
            ),
        )

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of a tcp endpoint, or None."""
        match = re.fullmatch(r"tcp://\[?([^\]]+?)\]?:([0-9]+)", self.endpoint)
        return (match[1], int(match[2])) if match else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderSpec:
    """A builder as the settings require it; without nodes, it has one that buildx names.

    ``driver`` may be ``auto``, and ``driver_opts`` are for every node. ``buildkitd_toml`` is the text of
    buildkitd.toml; ``has_buildkitd_settings`` tells that settings require it (mirrors alone do not).
    """

    name: str
    driver: str
    nodes: tuple[NodeSpec, ...] = ()
    driver_opts: tuple[str, ...] = ()
    buildkitd_toml: str = ""
    has_buildkitd_settings: bool = False
    entitlements: tuple[str, ...] = ()

    @classmethod
    def from_settings(cls, settings: Settings) -> BuilderSpec:
        """Return the builder that the settings require. Raise :class:`UsageError` for an impossible one."""
        nodes = tuple(NodeSpec.parse(text) for text in settings.nodes)
        names = [node.name for node in nodes]
        if len(set(names)) != len(names):
            raise UsageError(
                f"node names are not unique: {', '.join(names)}", hint="give each node its own name"
            )
        spec = cls(
            name=settings.name,
            driver=settings.driver,
            nodes=nodes,
            driver_opts=split_driver_opts(settings.driver_opt),
            buildkitd_toml=render_buildkitd_toml(settings),
            has_buildkitd_settings=has_buildkitd_settings(settings),
            entitlements=settings.allow,
        )
        spec.check()
        return spec

    def check(self) -> None:
        """Raise :class:`UsageError` for settings that the driver does not support."""
        if self.driver == "docker" and self.has_requirements:
            raise UsageError(
                "the engine's own builder (driver docker) has no nodes, options or configuration",
                hint="--driver=docker-container",
            )
        if self.driver not in ("remote", "auto"):
            self._check_no_tls()
        if self.driver == "remote" and not all(node.endpoint for node in self.nodes):
            raise UsageError(_NO_ENDPOINT, hint=_NODE_HINT)
        if self.driver == "remote" and self.has_buildkitd_settings:
            raise UsageError(
                "buildx cannot configure a remote BuildKit",
                hint="write the settings into buildkitd.toml on that machine",
            )

    def check_creatable(self) -> None:
        """Raise :class:`UsageError` if something is missing that is needed to create the builder."""
        if self.driver == "remote" and not self.nodes:
            raise UsageError(_NO_ENDPOINT, hint=_NODE_HINT)
        if self.driver == "auto":
            self._check_no_tls()

    def _check_no_tls(self) -> None:
        """Raise for TLS files: a Docker engine's belong in a docker context, a cluster's in a kubeconfig."""
        for node in self.nodes:
            if any(option.partition("=")[0] in TLS_OPTIONS for option in node.driver_opts):
                raise UsageError(
                    f"node {node.name}: TLS files are for a BuildKit, with --driver=remote; those of a Docker"
                    " engine belong in a docker context",
                    hint=f"docker context create {node.name}"
                    " --docker host=tcp://HOST:2376,ca=FILE,cert=FILE,key=FILE, then"
                    f" --node name={node.name},endpoint={node.name}",
                )

    @property
    def has_requirements(self) -> bool:
        """Whether the settings require what the engine's own builder does not support."""
        return bool(self.nodes or self.driver_opts or self.has_buildkitd_settings)

    @property
    def image(self) -> str:
        """The image of the BuildKit container."""
        return parse_driver_opts(self.driver_opts).get("image", DEFAULT_IMAGE)

    def driver_opts_for(self, node: NodeSpec) -> tuple[str, ...]:
        """Return the driver options of a node: those of the builder, then its own."""
        return (*self.driver_opts, *node.driver_opts)

    @property
    def effective_nodes(self) -> tuple[NodeSpec, ...]:
        """The nodes, or one without requirements if none is named."""
        return self.nodes or (NodeSpec(),)


def split_driver_opts(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the driver options one by one; buildx accepts several in one value, as CSV."""
    return tuple(option for row in csv.reader(texts) for option in row)


def parse_driver_opts(options: Iterable[str]) -> dict[str, str]:
    """Return driver options ``NAME=VALUE`` as a dictionary."""
    return dict(option.split("=", 1) for option in options if "=" in option)


def _parse_pairs(text: str) -> Iterator[tuple[str, str]]:
    for field in parse_csv_row(text, f"node {text!r}"):
        key, separator, value = field.partition("=")
        if not separator or key not in _NODE_KEYS:
            raise UsageError(
                f"node {text!r}: {field!r} does not set one of {', '.join(_NODE_KEYS)}", hint=_NODE_HINT
            )
        yield key, value


def _parse_tls_options(name: str, values: dict[str, str]) -> Iterator[str]:
    """Yield TLS files as driver options with absolute paths: buildx may run in another directory."""
    for key, option in _TLS_OPTION_OF_KEY.items():
        if key in values:
            path = expand_home(values[key]).absolute()
            if not path.is_file():
                raise UsageError(f"node {name}: {key}: {path} is not a file")
            yield f"{option}={path}"
    if "servername" in values:
        yield f"servername={values['servername']}"
