"""One target of a bake file, as ``docker buildx bake --print`` shows it, read into a build request.

The keys are those of docker's "Bake file reference"; one that cannot be honoured is refused by its name.
``--print`` doubles the sign of ``${`` and ``%{`` in some of its texts, so that what it prints is a bake
file again, and asks for none of the permissions (``--allow``) that baking asks for: a target that reaches
beyond this folder is refused here.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.build.outputs import TYPES, OutputSpec
from buildkit_tasks.build.request import BuildRequest
from buildkit_tasks.errors import UsageError
from buildkit_tasks.system.csv_fields import write_row

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["TARGET_NAME", "BakeTarget", "TargetReader"]

TARGET_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]*\Z")  # buildx's own, and a compose service's dot
_DOUBLED = re.compile(r"([$%])\1\{")
_REMOTE = re.compile(r"(?:[a-z][a-z0-9+.-]*://|git@|docker-image:|oci-layout:)")
_LINK = "target:"
_HERE = "cwd://"
_UNTOLD = ("description",)  # what a list of targets shows
# What a build is without them, so that nothing is lost where a file says just that.
_STANDARD = {"network": ("default",), "call": ("build",)}
_FREE = "BUILDX_BAKE_ENTITLEMENTS_FS"  # buildx's own switch for files beyond this folder
_READ = (
    "annotations", "args", "attest", "cache-from", "cache-to", "context", "contexts", "dockerfile",
    "dockerfile-inline", "labels", "no-cache", "output", "platforms", "pull", "secret", "ssh", "tags",
    "target",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BakeTarget:
    """One target: its request, without platforms where the file names none.

    ``links`` are the contexts that are other targets: a context's name and the target's. ``inline`` is
    the text of a Dockerfile that lies in no file.
    """

    name: str
    platforms: tuple[str, ...]
    request: BuildRequest
    links: tuple[tuple[str, str], ...] = ()
    inline: str | None = None


@dataclass(frozen=True, slots=True)
class TargetReader:
    """Reads one target; ``where`` begins its messages."""

    where: str

    def target(self, name: str, raw: Any) -> BakeTarget:
        """The target. Raises :class:`UsageError` that names the key of what cannot be honoured."""
        if not TARGET_NAME.match(name):
            raise self._refused("name", name)
        if not isinstance(raw, dict):
            raise self._refused("target", raw)
        given = {key: value for key, value in raw.items() if value not in (None, [], {}, "", False)}
        for key, value in given.items():
            if not all(map(_is_passable, _texts_in(value))):
                raise self._refused(key, value)
        for key, value in given.items():
            if key not in _READ and key not in _UNTOLD and value not in _STANDARD.get(key, ()):
                raise UsageError(
                    f"{self.where}: {key} = {json.dumps(value)} cannot be honoured here",
                    hint="take it out, or bake that target with docker buildx bake",
                )
        return self._built(name, given, self._pairs(given, "contexts"))

    def _built(self, name: str, given: Mapping[str, Any], contexts: Sequence[tuple[str, str]]) -> BakeTarget:
        inline = _plain(self._text(given, "dockerfile-inline")) if "dockerfile-inline" in given else None
        context = self._context(self._text(given, "context") or ".", "context")
        request = BuildRequest(
            platforms=(),
            context=context,
            file=self._dockerfile(given, context, inline=inline is not None),
            tags=self._list(given, "tags"),
            target=self._text(given, "target"),
            outputs=tuple(self._output(entry) for entry in self._entries(given, "output")),
            build_args=self._joined(given, "args"),
            labels=self._joined(given, "labels"),
            annotations=tuple(map(_plain, self._list(given, "annotations"))),
            build_contexts=tuple(
                f"{key}={self._context(value, 'contexts')}"
                for key, value in contexts
                if not value.startswith(_LINK)
            ),
            cache_from=tuple(self._row(entry, "cache-from") for entry in self._entries(given, "cache-from")),
            cache_to=tuple(self._row(entry, "cache-to") for entry in self._entries(given, "cache-to")),
            secrets=tuple(self._secret(entry) for entry in self._entries(given, "secret")),
            ssh=tuple(self._ssh(entry) for entry in self._lists(given, "ssh")),
            attest=tuple(self._row(entry, "attest") for entry in self._entries(given, "attest")),
            no_cache=self._flag(given, "no-cache"),
            pull=self._flag(given, "pull"),
        )
        links = tuple((key, value.removeprefix(_LINK)) for key, value in contexts if value.startswith(_LINK))
        return BakeTarget(
            name=name,
            platforms=self._list(given, "platforms"),
            request=request,
            links=links,
            inline=inline,
        )

    def _refused(self, key: str, value: Any) -> UsageError:
        return UsageError(f"{self.where}: {key} = {json.dumps(value)} cannot be read")

    def _text(self, given: Mapping[str, Any], key: str) -> str:
        value = given.get(key, "")
        if not isinstance(value, str):
            raise self._refused(key, value)
        return value

    def _flag(self, given: Mapping[str, Any], key: str) -> bool:
        if given.get(key, True) is not True:
            raise self._refused(key, given[key])
        return key in given

    def _list(self, given: Mapping[str, Any], key: str) -> tuple[str, ...]:
        value = given.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._refused(key, value)
        return tuple(value)

    def _pairs(self, given: Mapping[str, Any], key: str) -> list[tuple[str, str]]:
        """The texts of a map; a name with ``=`` would end elsewhere on buildx's command line."""
        value = given.get(key, {})
        if not isinstance(value, dict):
            raise self._refused(key, value)
        pairs = [(name, each) for name, each in value.items() if each is not None]
        if not all(isinstance(each, str) and name and "=" not in name for name, each in pairs):
            raise self._refused(key, value)
        return pairs

    def _joined(self, given: Mapping[str, Any], key: str) -> tuple[str, ...]:
        return tuple(f"{name}={_plain(value)}" for name, value in self._pairs(given, key))

    def _lists(self, given: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
        value = given.get(key, [])
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self._refused(key, value)
        return value

    def _entries(self, given: Mapping[str, Any], key: str) -> list[dict[str, str]]:
        """The entries of CSV that buildx has taken apart."""
        entries = self._lists(given, key)
        for entry in entries:
            if not all(isinstance(each, str) and name and "=" not in name for name, each in entry.items()):
                raise self._refused(key, entry)
        return entries

    def _row(self, entry: Mapping[str, str], key: str) -> str:
        if entry.get("type") == "local":
            for name in ("src", "dest"):
                self._inside(entry.get(name, ""), key)
        return write_row(f"{name}={value}" for name, value in entry.items())

    def _output(self, entry: Mapping[str, str]) -> OutputSpec:
        if entry.get("type") not in TYPES:
            raise self._refused("output", entry)
        self._inside(entry.get("dest", ""), "output")
        attributes = tuple((name, value) for name, value in entry.items() if name != "type")
        return OutputSpec(type=entry["type"], attributes=attributes)

    def _secret(self, entry: Mapping[str, str]) -> str:
        if not set(entry) <= {"id", "env", "src", "type"} or "id" not in entry:
            raise self._refused("secret", entry)
        # Without either, it is the variable of that name, or else the file.
        if "env" not in entry and (entry.get("src") or entry["id"] not in os.environ):
            self._inside(entry.get("src") or entry["id"], "secret")
        return write_row(f"{name}={value}" for name, value in entry.items())

    def _ssh(self, entry: Mapping[str, Any]) -> str:
        paths = entry.get("paths") or []
        if not set(entry) <= {"id", "paths"} or not isinstance(entry.get("id"), str):
            raise self._refused("ssh", entry)
        if not isinstance(paths, list) or not all(
            isinstance(path, str) and "," not in path for path in paths
        ):
            raise self._refused("ssh", entry)
        for path in paths:
            self._inside(path, "ssh")
        return f"{entry['id']}={','.join(paths)}" if paths else str(entry["id"])

    def _context(self, value: str, key: str) -> str:
        """A context as buildx's command line takes it; a folder is one of this folder's."""
        if value == "-":
            raise self._refused(key, value)
        if value.startswith("oci-layout:"):
            self._inside(value.removeprefix("oci-layout:").removeprefix("//").partition("@")[0], key)
        elif value.startswith(_HERE) or not _REMOTE.match(value):
            value = os.path.normpath(value.removeprefix(_HERE))
            self._inside(value, key)
        return value

    def _dockerfile(self, given: Mapping[str, Any], context: str, *, inline: bool) -> str:
        """The Dockerfile, which in a bake file is named from the context on."""
        name = self._text(given, "dockerfile") or "Dockerfile"
        remote = bool(_REMOTE.match(context))
        if name == "-" or _REMOTE.match(name.removeprefix(_HERE)) or (inline and remote):
            raise self._refused("dockerfile-inline" if inline else "dockerfile", name)
        if inline:
            return ""
        if remote:
            return "" if name == "Dockerfile" else name
        path = name.removeprefix(_HERE) if name.startswith(_HERE) else str(Path(context) / name)
        self._inside(path, "dockerfile")
        return path

    def _inside(self, path: str, key: str) -> None:
        if not path or os.environ.get(_FREE, "").lower() in ("0", "f", "false"):
            return
        if not Path(path).resolve().is_relative_to(Path.cwd().resolve()):
            raise UsageError(
                f"{self.where}: {key}: {path} is not in this folder",
                hint=f"run this from a folder above, or allow it as for buildx: {_FREE}=0",
            )


def _texts_in(value: Any) -> Iterator[str]:
    """Every text in a value, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from (name, *_texts_in(each))
    elif isinstance(value, list):
        for each in value:
            yield from _texts_in(each)


def _is_passable(text: str) -> bool:
    """Whether a program can be given it: no NUL, and UTF-8."""
    return "\0" not in text and text.encode(errors="replace").decode() == text


def _plain(text: str) -> str:
    """A text of which buildx has doubled the sign before each brace."""
    return _DOUBLED.sub(r"\1{", text)
