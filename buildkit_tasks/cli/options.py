"""The options of all tasks, each declared once; those of a build are called as in ``docker buildx build``."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ARCHIVE",
    "BAKE_FILE",
    "BUILD_OPTIONS",
    "COMMON_OPTIONS",
    "ENGINE_OPTIONS",
    "HOST_OPTIONS",
    "IMAGE",
    "IMAGE_NAMES",
    "KEEP_STATE",
    "NO_VERIFY",
    "PART_OPTIONS",
    "PLATFORM",
    "RECREATE",
    "REPORT",
    "RUN_OPTIONS",
    "SETUP_OPTIONS",
    "SPLIT",
    "TAG",
    "VERIFY_OPTIONS",
    "Option",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A command-line option of one or more tasks.

    ``default`` is also the kind of the option: text, ``False`` for a flag, ``()`` for one that repeats.
    ``setting`` is the key of the setting that it overrides, if there is one.
    """

    name: str
    help: str
    default: str | bool | tuple[()] = ""
    setting: str = ""
    short: str = ""
    positional: bool = False


def _list_option(name: str, help_text: str, *, setting: str = "", short: str = "") -> Option:
    return Option(name=name, help=f"{help_text}; repeatable", default=(), setting=setting, short=short)


def _flag_option(name: str, help_text: str) -> Option:
    return Option(name=name, help=help_text, default=False)


def _text_option(name: str, help_text: str, *, setting: str = "", short: str = "") -> Option:
    return Option(name=name, help=help_text, setting=setting, short=short)


COMMON_OPTIONS = (
    _flag_option("json", "print one JSON document on standard output, everything else on standard error"),
    _flag_option("dry_run", "print the exact commands and change nothing"),
    _flag_option("debug", "show the traceback of an error"),
)

IMAGE = Option(
    name="image",
    help="REF or docker://REF (a registry), docker-daemon:REF, oci:DIR, oci-archive:FILE, "
    "docker-archive:FILE, dir:DIR or a path (default: the last one built here)",
    positional=True,
)
ARCHIVE = Option(
    name="archive",
    help="oci-archive:FILE, oci:DIR, any other image, or a path (default: the last one built here)",
    positional=True,
)
PART_OPTIONS = (
    _list_option("part", "an image of one platform, pushed by digest: REPO@sha256:..."),
    _list_option(
        "parts_file", "a file with one REPO@sha256:... a line, or what build-multiarch --json printed"
    ),
    _text_option("image", "the image of the settings that the parts belong to"),
)
NO_VERIFY = _flag_option("no_verify", "tag the image without verifying and running it first")
SPLIT = _flag_option("split", "push by digest without a tag: one part for merge-multiarch")
IMAGE_NAMES = _list_option("image", "build, verify and run only this image of the settings")
BAKE_FILE = _text_option("bake", "build, verify and run the targets of this bake file: HCL, JSON or compose")
PLATFORM = _list_option(
    "platform", "a platform such as linux/arm/v7, or several with commas", setting="platforms"
)
REPORT = _list_option("report", "write the report to a file: .json, .xml (JUnit), .md, .html or .svg")
RECREATE = _flag_option("recreate", "recreate the builder, and replace handlers that do not work")
KEEP_STATE = _flag_option("keep_state", "keep images and build cache")

VERIFY_OPTIONS = (
    _list_option(
        "allow_foreign",
        "a glob of paths whose binaries may be for another machine or need more than the baseline",
        setting="allow_foreign",
    ),
    _text_option("parity", "how to treat differences between platforms: warn, fail or off", setting="parity"),
)
# `for` is a Python keyword; the parser strips the underscore.
HOST_OPTIONS = (
    _list_option("for_", "only check whether the image would start on this platform"),
    _text_option(
        "for_nodes", "the same for each node in a file with the output of `kubectl get nodes -o json`"
    ),
)

ENGINE_OPTIONS = (
    _text_option("engine", "auto, system (a running daemon) or private", setting="engine"),
    _text_option(
        "emulators",
        "auto, host (this machine's or Debian's QEMU), image (tonistiigi/binfmt) or none",
        setting="emulators",
    ),
)

FALLBACK = _text_option(
    "fallback", "emulate: build on other nodes what an unreachable node should build", setting="fallback"
)

ALLOW = _list_option("allow", "an entitlement that builds may have: network.host", setting="allow")

SETUP_OPTIONS = (
    _text_option("name", "the builder's name (default multi-platform-builder)", setting="name"),
    _text_option("driver", "auto, docker-container, docker, remote or kubernetes", setting="driver"),
    _list_option("driver_opt", "an option of the builder's driver, NAME=VALUE", setting="driver_opt"),
    _list_option(
        "node",
        "a node of the builder: name=NAME,endpoint=URL,platform=linux/arm64,ca=FILE,cert=FILE,key=FILE",
        setting="nodes",
    ),
    FALLBACK,
    _text_option(
        "buildkitd_config", "a buildkitd.toml for the builder's BuildKit", setting="buildkitd_config"
    ),
    _list_option("mirror", "a mirror of Docker Hub, https://HOST", setting="mirrors"),
    ALLOW,
    PLATFORM,
    *ENGINE_OPTIONS,
)

TAG = _list_option(
    "tag", "a name for the image, REGISTRY/NAME:TAG, or several with commas", setting="tags", short="t"
)

BUILD_OPTIONS = (
    _text_option("context", "the build context: a folder or a URL (default: this folder)", setting="context"),
    _text_option("file", "the Dockerfile (default: Dockerfile in the context)", setting="file", short="f"),
    TAG,
    _list_option(
        "output",
        "output as for buildx, type=oci,dest=FILE (default: an OCI archive in dist/)",
        short="o",
    ),
    _flag_option("push", "push it to the registries of its tags"),
    _flag_option("load", "load it into the engine's image store"),
    _list_option("target", "the stage to build; with --bake a target or group of the file", setting="target"),
    _list_option("build_arg", "NAME=VALUE for an ARG", setting="build_args"),
    _list_option("build_context", "a named context, NAME=PATH-OR-URL"),
    _list_option("cache_from", "import the build cache from here; each platform also from its own scope"),
    _list_option("cache_to", "export the build cache to here; a build of one platform to its own scope"),
    _list_option("secret", "for RUN --mount=type=secret: id=NAME,env=VARIABLE or id=NAME,src=FILE"),
    _list_option("ssh", "an agent or key for RUN --mount=type=ssh"),
    _list_option("label", "NAME=VALUE in the image's configuration"),
    _list_option("annotation", "NAME=VALUE in the image's manifests"),
    _list_option("attest", "an attestation, such as type=sbom"),
    _text_option("provenance", "false, true or mode=max"),
    _text_option("sbom", "false or true"),
    _flag_option("no_attest", "no attestations; by default buildx adds provenance"),
    _flag_option(
        "reproducible", "build the same digest from the same source: fixed timestamps, no attestations"
    ),
    _flag_option("no_cache", "do not use the build cache"),
    _flag_option("pull", "always pull the base images"),
    _text_option("progress", "auto, plain, tty, quiet or rawjson", setting="progress"),
    _text_option("metadata_file", "also write buildx's metadata to this file"),
    _text_option("builder", "the builder to use", setting="name"),
    FALLBACK,
    ALLOW,
    _text_option("bases", "auto, registry (never stand-ins) or standin", setting="bases"),
)

RUN_OPTIONS = (
    _text_option("command", "run this command instead of the image's CMD", setting="command"),
    _text_option(
        "expect",
        "a regular expression that the output must match; {goarch}, {platform} and {machine} are filled in",
        setting="expect",
    ),
    _text_option("expect_exit", "the expected exit status (default 0)", setting="expect_exit"),
    _text_option("runner", "auto, docker, or sandbox (without an engine)", setting="runner"),
    _text_option(
        "cpu",
        "max, floor (the oldest CPU of the platform's baseline), both, or a QEMU CPU model",
        setting="cpu",
    ),
    _text_option("timeout", "seconds that one platform may take (default 60)", setting="timeout"),
    _text_option("jobs", "how many run at once (default: two for each processor)", setting="jobs", short="j"),
)
