"""Convert one target of ``docker buildx bake --print`` to a build request.

The keys are those of Docker's "Bake file reference"; an unsupported key is refused by its name. Two
properties of ``--print`` matter here: in some strings it doubles the sign of ``${`` and ``%{``, so that its
output is a bake file again; and it does not ask for the permissions (``--allow``) that ``bake`` asks for, so
that a target which reads or writes outside of this folder is refused here.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.build.outputs import OUTPUT_TYPES, OutputSpec
from buildkit_tasks.build.request import BuildRequest
from buildkit_tasks.errors import UsageError
from buildkit_tasks.system.csv_fields import format_csv_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["TARGET_NAME", "BakeTarget", "BakeTargetReader"]

TARGET_NAME = re.compile(
    r"[a-zA-Z0-9_][a-zA-Z0-9_.-]*\Z"
)  # buildx's grammar, and the dot of compose services
_ESCAPED_TEMPLATE = re.compile(r"([$%])\1\{")
_REMOTE_CONTEXT = re.compile(r"(?:[a-z][a-z0-9+.-]*://|git@|docker-image:|oci-layout:)")
_TARGET_PREFIX = "target:"
_CWD_PREFIX = "cwd://"
_IGNORED_KEYS = ("description",)  # shown by --list=targets only
# Keys that are ignored with these values: they are what a build does without them.
_IGNORED_DEFAULTS = {"call": ("build",)}
_ENTITLEMENTS_FS = "BUILDX_BAKE_ENTITLEMENTS_FS"  # buildx's variable: 0 allows files outside of this folder
_SUPPORTED_KEYS = (
    "annotations", "args", "attest", "cache-from", "cache-to", "context", "contexts", "dockerfile",
    "dockerfile-inline", "entitlements", "extra-hosts", "labels", "network", "no-cache", "no-cache-filter",
    "output", "platforms", "pull", "resources", "secret", "shm-size", "ssh", "tags", "target", "ulimits",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BakeTarget:
    """One target; ``request`` has no platforms: those of the file, if any, are in ``platforms``.

    ``linked_contexts`` are build contexts that are other targets: (context's name, target's name) each.
    ``entitlements`` are those that the target asks for; the user has to allow them.
    """

    name: str
    platforms: tuple[str, ...]
    request: BuildRequest
    linked_contexts: tuple[tuple[str, str], ...] = ()
    inline_dockerfile: str | None = None
    entitlements: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BakeTargetReader:
    """Reads targets; ``location`` (file and target) precedes its messages."""

    location: str

    def read_target(self, name: str, raw: Any) -> BakeTarget:
        """Return the target. Raises :class:`UsageError`, which names the key, for what is not supported."""
        if not TARGET_NAME.match(name):
            raise self._unreadable_error("name", name)
        if not isinstance(raw, dict):
            raise self._unreadable_error("target", raw)
        values = {key: value for key, value in raw.items() if value not in (None, [], {}, "", False)}
        for key, value in values.items():
            if not all(map(_is_valid_argument, _iter_strings(value))):
                raise self._unreadable_error(key, value)
        for key, value in values.items():
            if (
                key not in _SUPPORTED_KEYS
                and key not in _IGNORED_KEYS
                and value not in _IGNORED_DEFAULTS.get(key, ())
            ):
                raise UsageError(
                    f"{self.location}: {key} = {json.dumps(value)} is not supported",
                    hint="remove it, or build that target by docker buildx bake",
                )
        return self._build_target(name, values)

    def _build_target(self, name: str, values: Mapping[str, Any]) -> BakeTarget:
        inline_dockerfile = None
        if "dockerfile-inline" in values:
            inline_dockerfile = _unescape_template(self._get_string(values, "dockerfile-inline"))
        contexts = self._get_pairs(values, "contexts")
        links = [(key, value) for key, value in contexts if value.startswith(_TARGET_PREFIX)]
        return BakeTarget(
            name=name,
            platforms=self._get_strings(values, "platforms"),
            request=self._build_request(
                values,
                contexts=[pair for pair in contexts if pair not in links],
                is_inline=inline_dockerfile is not None,
            ),
            linked_contexts=tuple((key, value.removeprefix(_TARGET_PREFIX)) for key, value in links),
            inline_dockerfile=inline_dockerfile,
            entitlements=self._get_strings(values, "entitlements"),
        )

    def _build_request(
        self, values: Mapping[str, Any], contexts: Iterable[tuple[str, str]], *, is_inline: bool
    ) -> BuildRequest:
        context = self._resolve_context(self._get_string(values, "context") or ".", "context")
        return BuildRequest(
            platforms=(),
            context=context,
            file=self._resolve_dockerfile(values, context, is_inline=is_inline),
            tags=self._get_strings(values, "tags"),
            target=self._get_string(values, "target"),
            outputs=tuple(self._parse_output(entry) for entry in self._get_csv_entries(values, "output")),
            build_args=self._get_assignments(values, "args"),
            labels=self._get_assignments(values, "labels"),
            annotations=tuple(map(_unescape_template, self._get_strings(values, "annotations"))),
            build_contexts=tuple(
                f"{key}={self._resolve_context(value, 'contexts')}" for key, value in contexts
            ),
            cache_from=self._format_entries(values, "cache-from"),
            cache_to=self._format_entries(values, "cache-to"),
            secrets=tuple(self._format_secret(entry) for entry in self._get_csv_entries(values, "secret")),
            ssh=tuple(self._format_ssh(entry) for entry in self._get_objects(values, "ssh")),
            attest=self._format_entries(values, "attest"),
            no_cache=self._get_flag(values, "no-cache"),
            pull=self._get_flag(values, "pull"),
            no_cache_filters=self._get_strings(values, "no-cache-filter"),
            network=self._get_string(values, "network"),
            add_hosts=self._format_hosts(values),
            shm_size=self._get_string(values, "shm-size"),
            ulimits=self._get_strings(values, "ulimits"),
            resources=self._format_resources(values),
        )

    def _unreadable_error(self, key: str, value: Any) -> UsageError:
        return UsageError(f"{self.location}: {key} = {json.dumps(value)} cannot be read")

    def _get_string(self, values: Mapping[str, Any], key: str) -> str:
        value = values.get(key, "")
        if not isinstance(value, str):
            raise self._unreadable_error(key, value)
        return value

    def _get_flag(self, values: Mapping[str, Any], key: str) -> bool:
        if values.get(key, True) is not True:
            raise self._unreadable_error(key, values[key])
        return key in values

    def _get_strings(self, values: Mapping[str, Any], key: str) -> tuple[str, ...]:
        value = values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._unreadable_error(key, value)
        return tuple(value)

    def _get_pairs(self, values: Mapping[str, Any], key: str) -> list[tuple[str, str]]:
        """Return the items of a map of strings; a name with ``=`` would be split elsewhere by buildx."""
        value = values.get(key, {})
        if not isinstance(value, dict):
            raise self._unreadable_error(key, value)
        pairs = [(name, text) for name, text in value.items() if text is not None]
        if not all(isinstance(text, str) and name and "=" not in name for name, text in pairs):
            raise self._unreadable_error(key, value)
        return pairs

    def _get_assignments(self, values: Mapping[str, Any], key: str) -> tuple[str, ...]:
        return tuple(f"{name}={_unescape_template(value)}" for name, value in self._get_pairs(values, key))

    def _get_objects(self, values: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
        value = values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self._unreadable_error(key, value)
        return value

    def _get_csv_entries(self, values: Mapping[str, Any], key: str) -> list[dict[str, str]]:
        """Return options that buildx has parsed from CSV to objects."""
        entries = self._get_objects(values, key)
        for entry in entries:
            if not all(isinstance(text, str) and name and "=" not in name for name, text in entry.items()):
                raise self._unreadable_error(key, entry)
        return entries

    def _format_entries(self, values: Mapping[str, Any], key: str) -> tuple[str, ...]:
        return tuple(self._format_entry(entry, key) for entry in self._get_csv_entries(values, key))

    def _format_entry(self, entry: Mapping[str, str], key: str) -> str:
        if entry.get("type") == "local":
            for name in ("src", "dest"):
                self._check_inside(entry.get(name, ""), key)
        return format_csv_row(f"{name}={value}" for name, value in entry.items())

    def _parse_output(self, entry: Mapping[str, str]) -> OutputSpec:
        if entry.get("type") not in OUTPUT_TYPES:
            raise self._unreadable_error("output", entry)
        self._check_inside(entry.get("dest", ""), "output")
        attributes = tuple((name, value) for name, value in entry.items() if name != "type")
        return OutputSpec(type=entry["type"], attributes=attributes)

    def _format_secret(self, entry: Mapping[str, str]) -> str:
        if not set(entry) <= {"id", "env", "src", "type"} or "id" not in entry:
            raise self._unreadable_error("secret", entry)
        # Without env and src, buildx uses the id as a variable, else as a file.
        if "env" not in entry and (entry.get("src") or entry["id"] not in os.environ):
            self._check_inside(entry.get("src") or entry["id"], "secret")
        return format_csv_row(f"{name}={value}" for name, value in entry.items())

    def _format_hosts(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Return an entry for each address: in a bake file a host may have several, with commas."""
        pairs = self._get_pairs(values, "extra-hosts")
        return tuple(f"{host}={address}" for host, text in pairs for address in text.split(","))

    def _format_resources(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        resources = values.get("resources", {})
        if not isinstance(resources, dict) or not all(
            isinstance(each, str | int) for each in resources.values()
        ):
            raise self._unreadable_error("resources", resources)
        return tuple(f"{name}={value}" for name, value in resources.items())

    def _format_ssh(self, entry: Mapping[str, Any]) -> str:
        paths = entry.get("paths") or []
        if not set(entry) <= {"id", "paths"} or not isinstance(entry.get("id"), str):
            raise self._unreadable_error("ssh", entry)
        if not isinstance(paths, list) or not all(
            isinstance(path, str) and "," not in path for path in paths
        ):
            raise self._unreadable_error("ssh", entry)
        for path in paths:
            self._check_inside(path, "ssh")
        return f"{entry['id']}={','.join(paths)}" if paths else str(entry["id"])

    def _resolve_context(self, value: str, key: str) -> str:
        """Return a context as ``buildx build`` takes it; a local one must be inside this folder."""
        if value == "-":
            raise self._unreadable_error(key, value)
        if value.startswith("oci-layout:"):
            self._check_inside(value.removeprefix("oci-layout:").removeprefix("//").partition("@")[0], key)
        elif value.startswith(_CWD_PREFIX) or not _REMOTE_CONTEXT.match(value):
            value = os.path.normpath(value.removeprefix(_CWD_PREFIX))
            self._check_inside(value, key)
        return value

    def _resolve_dockerfile(self, values: Mapping[str, Any], context: str, *, is_inline: bool) -> str:
        """Return the Dockerfile's path; in a bake file it is relative to the context."""
        name = self._get_string(values, "dockerfile") or "Dockerfile"
        is_remote = bool(_REMOTE_CONTEXT.match(context))
        if name == "-" or _REMOTE_CONTEXT.match(name.removeprefix(_CWD_PREFIX)) or (is_inline and is_remote):
            raise self._unreadable_error("dockerfile-inline" if is_inline else "dockerfile", name)
        if is_inline:
            return ""
        if is_remote:
            return "" if name == "Dockerfile" else name
        path = name.removeprefix(_CWD_PREFIX) if name.startswith(_CWD_PREFIX) else str(Path(context) / name)
        self._check_inside(path, "dockerfile")
        return path

    def _check_inside(self, path: str, key: str) -> None:
        if not path or os.environ.get(_ENTITLEMENTS_FS, "").lower() in ("0", "f", "false"):
            return
        if not Path(path).resolve().is_relative_to(Path.cwd().resolve()):
            raise UsageError(
                f"{self.location}: {key}: {path} is outside of this folder",
                hint=f"run this in a parent folder, or allow it as in buildx by {_ENTITLEMENTS_FS}=0",
            )


def _iter_strings(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from (name, *_iter_strings(item))
    elif isinstance(value, list):
        for item in value:
            yield from _iter_strings(item)


def _is_valid_argument(text: str) -> bool:
    """Return True if a program can be given the text as an argument: no NUL, and valid UTF-8."""
    return "\0" not in text and text.encode(errors="replace").decode() == text


def _unescape_template(text: str) -> str:
    """Return the text of a template in which buildx has doubled the sign before each brace."""
    return _ESCAPED_TEMPLATE.sub(r"\1{", text)
