"""What is asked of a builder: its driver, its nodes, and the configuration of their BuildKit daemons.

The names are those of ``docker buildx create``. Everything is matched whole against its grammar before
a program sees it.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import BUILDER_NAME_PATTERN
from buildkit_tasks.errors import UsageError
from buildkit_tasks.host.builder.buildkitd_config import has_buildkitd_settings, render_buildkitd_toml
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.system.csv_fields import parse_csv_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from buildkit_tasks.config.settings import Settings

__all__ = ["DEFAULT_IMAGE", "MANAGED_DRIVERS", "REMOTE_DRIVERS", "TLS_OPTIONS", "BuilderSpec", "NodeSpec"]

DEFAULT_IMAGE = "moby/buildkit:buildx-stable-1"
REMOTE_DRIVERS = ("remote", "kubernetes")  # drivers whose BuildKit no Docker engine runs
MANAGED_DRIVERS = ("docker-container", "kubernetes")  # those that start it, and can configure it

# A context's name, or a URL of a kind that buildx knows; nothing that looks like an option.
_ENDPOINT_PATTERN = re.compile(
    r"(?:[a-zA-Z0-9][a-zA-Z0-9_.+-]*|tcp://[^\s\"',/:]+:[0-9]{1,5}|tcp://\[[0-9a-fA-F:]+\]:[0-9]{1,5}"
    r"|(?:unix|ssh|npipe|docker-container|kube-pod)://[^\s\"',]+)\Z",
    re.ASCII,
)
# Our names of TLS material, and the options of the driver `remote` that they are.
_TLS_OPTION_OF_KEY = {"ca": "cacert", "cert": "cert", "key": "key"}
TLS_OPTIONS = (*_TLS_OPTION_OF_KEY.values(), "servername")  # any of them means TLS
_NODE_KEYS = ("name", "endpoint", "platform", "platforms", "driver-opt", "servername", *_TLS_OPTION_OF_KEY)
_REPEATABLE_KEYS = ("platform", "platforms", "driver-opt")
_NO_ENDPOINT = "the driver remote needs to be told where each BuildKit is"
_NODE_HINT = "--node name=NAME,endpoint=tcp://HOST:PORT,platform=linux/arm64,ca=FILE,cert=FILE,key=FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """One node: where its daemon is, for which platforms (none: those that it runs natively), and how.

    ``options`` are the driver's, one ``NAME=VALUE`` each, TLS material among them.
    """

    name: str = ""
    endpoint: str = ""
    platforms: tuple[Platform, ...] = ()
    driver_opts: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> NodeSpec:
        """Read ``--node``: CSV of ``name=``, ``endpoint=``, ``platform=``, TLS material and ``driver-opt=``.

        Raises :class:`UsageError` for an unknown key, a bad value or a file that is not there.
        """
        pairs = list(_parse_pairs(text))
        values = {key: value for key, value in pairs if key not in _REPEATABLE_KEYS}
        if len(values) != sum(key not in _REPEATABLE_KEYS for key, _ in pairs):
            raise UsageError(f"node {text!r} says something twice", hint=_NODE_HINT)
        name, endpoint = values.get("name", ""), values.get("endpoint", "")
        if not BUILDER_NAME_PATTERN.match(name):
            raise UsageError(f"node {text!r}: {name!r} is no node's name", hint=_NODE_HINT)
        if endpoint and not _ENDPOINT_PATTERN.match(endpoint):
            raise UsageError(f"node {name}: {endpoint!r} is no endpoint", hint=_NODE_HINT)
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
        """Host and port of a tcp endpoint, which can be asked whether anybody listens."""
        match = re.fullmatch(r"tcp://\[?([^\]]+?)\]?:([0-9]+)", self.endpoint)
        return (match[1], int(match[2])) if match else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderSpec:
    """A builder as the settings ask for it; without nodes, one that buildx names itself.

    ``driver`` may be ``auto``; ``options`` hold for every node; ``config`` is the text of buildkitd.toml,
    and ``configured`` tells that somebody insists on it.
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
        """What the settings ask for. Raises :class:`UsageError` for what no driver can do."""
        nodes = tuple(NodeSpec.parse(text) for text in settings.nodes)
        names = [node.name for node in nodes]
        if len(set(names)) != len(names):
            raise UsageError(f"two nodes have one name: {', '.join(names)}", hint="give each its own")
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
        """Raise :class:`UsageError` for a driver and nodes that do not go together."""
        if self.driver == "docker" and self.has_requirements:
            raise UsageError(
                "the engine's own builder (driver docker) takes no nodes, options or configuration",
                hint="--driver=docker-container",
            )
        if self.driver not in ("remote", "auto"):
            self._check_no_tls()
        if self.driver == "remote" and not all(node.endpoint for node in self.nodes):
            raise UsageError(_NO_ENDPOINT, hint=_NODE_HINT)
        if self.driver == "remote" and self.has_buildkitd_settings:
            raise UsageError(
                "a remote BuildKit has its own configuration, which buildx cannot give it",
                hint="put it into buildkitd.toml on that machine",
            )

    def check_creatable(self) -> None:
        """Raise :class:`UsageError` for what says too little to make a builder of."""
        if self.driver == "remote" and not self.nodes:
            raise UsageError(_NO_ENDPOINT, hint=_NODE_HINT)
        if self.driver == "auto":
            self._check_no_tls()

    def _check_no_tls(self) -> None:
        """Raise for TLS material: a Docker engine's lies in a docker context, the cluster's with kubectl."""
        for node in self.nodes:
            if any(option.partition("=")[0] in TLS_OPTIONS for option in node.driver_opts):
                raise UsageError(
                    f"node {node.name}: its TLS material goes with --driver=remote, to a BuildKit; a Docker"
                    " engine's lies in a docker context",
                    hint=f"docker context create {node.name}"
                    " --docker host=tcp://HOST:2376,ca=FILE,cert=FILE,key=FILE, then"
                    f" --node name={node.name},endpoint={node.name}",
                )

    @property
    def has_requirements(self) -> bool:
        """Whether more is asked for than the engine's own builder can be given."""
        return bool(self.nodes or self.driver_opts or self.has_buildkitd_settings)

    @property
    def image(self) -> str:
        """The image that a container of BuildKit is made from."""
        driver_opts = dict(option.split("=", 1) for option in self.driver_opts if "=" in option)
        return driver_opts.get("image", DEFAULT_IMAGE)

    def driver_opts_for(self, node: NodeSpec) -> tuple[str, ...]:
        """The driver's options for one node: those of the builder, then its own."""
        return (*self.driver_opts, *node.driver_opts)

    @property
    def effective_nodes(self) -> tuple[NodeSpec, ...]:
        """Its nodes: one that is asked nothing of where none is named."""
        return self.nodes or (NodeSpec(),)


def split_driver_opts(texts: Iterable[str]) -> tuple[str, ...]:
    """The driver's options one by one: buildx takes several in one, as CSV."""
    return tuple(option for row in csv.reader(texts) for option in row)


def _parse_pairs(text: str) -> Iterator[tuple[str, str]]:
    for field in parse_csv_row(text, f"node {text!r}"):
        key, separator, value = field.partition("=")
        if not separator or key not in _NODE_KEYS:
            raise UsageError(f"node {text!r}: {field!r} is none of {', '.join(_NODE_KEYS)}", hint=_NODE_HINT)
        yield key, value


def _parse_tls_options(name: str, values: dict[str, str]) -> Iterator[str]:
    """TLS material as options of the driver, absolute: buildx may be run anywhere."""
    for key, option in _TLS_OPTION_OF_KEY.items():
        if key in values:
            path = Path(values[key]).expanduser().absolute()
            if not path.is_file():
                raise UsageError(f"node {name}: {key} names {path}, which is no file")
            yield f"{option}={path}"
    if "servername" in values:
        yield f"servername={values['servername']}"
