"""The options of all tasks, each declared once; those of a build are called as in ``docker buildx build``."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ARCHIVE",
    "BAKE_OPTIONS",
    "BUILD_OPTIONS",
    "CALL_OPTIONS",
    "COMMON_OPTIONS",
    "ENGINE_OPTIONS",
    "HOST_OPTIONS",
    "IMAGE",
    "IMAGE_NAMES",
    "KEEP_STATE",
    "NO_PUSH",
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
    "VERIFY_TIMEOUT",
    "Option",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A command-line option of one or more tasks.

    ``default`` is also the kind of the option: text, ``False`` for a flag, ``()`` for one that repeats.
    ``setting`` is the key of the setting that it overrides, if there is one. ``example`` is a value that
    the message for a missing one shows.
    """

    name: str
    help: str
    default: str | bool | tuple[()] = ""
    setting: str = ""
    short: str = ""
    positional: bool = False
    example: str = ""

    @property
    def flag_name(self) -> str:
        """Return the name on the command line without dashes; ``for_``, a Python keyword, is ``for``."""
        return self.name.strip("_").replace("_", "-")

    @property
    def flag(self) -> str:
        """Return the option as it is typed: ``--for``."""
        return f"--{self.flag_name}"


def _list_option(
    name: str, help_text: str, *, setting: str = "", short: str = "", example: str = ""
) -> Option:
    return Option(
        name=name,
        help=f"{help_text}; repeatable",
        default=(),
        setting=setting,
        short=short,
        example=example,
    )


def _flag_option(name: str, help_text: str) -> Option:
    return Option(name=name, help=help_text, default=False)


def _text_option(
    name: str, help_text: str, *, setting: str = "", short: str = "", example: str = ""
) -> Option:
    return Option(name=name, help=help_text, setting=setting, short=short, example=example)


COMMON_OPTIONS = (
    _flag_option("json", "print one JSON document on standard output, everything else on standard error"),
    _flag_option("dry_run", "print the exact commands and change nothing"),
    _flag_option("debug", "show the traceback of an error"),
)

IMAGE = Option(
    name="image",
    help="an image of the settings, REF or docker://REF (a registry), docker-daemon:REF, oci:DIR, "
    "oci-archive:FILE, docker-archive:FILE, dir:DIR or a path (default: all that the last build here made); "
    "repeatable",
    default=(),
    positional=True,
    example="oci-archive:dist/app.tar",
)
ARCHIVE = Option(
    name="archive",
    help="an image of the settings, oci-archive:FILE, oci:DIR, any other image, or a path (default: all that "
    "the last build here made)",
    positional=True,
    example="oci-archive:dist/app.tar",
)
PART_OPTIONS = (
    _list_option(
        "part",
        "an image of one platform, pushed by digest: REPO@sha256:...",
        example="registry.example.org/app@sha256:DIGEST",
    ),
    _list_option(
        "parts_file",
        "a file with one REPO@sha256:... a line, or what build-multiarch --json printed",
        example="parts.txt",
    ),
    _text_option("image", "the image of the settings that the parts belong to", example="web"),
)
NO_VERIFY = _flag_option("no_verify", "push the tags without verifying and running the image first")
SPLIT = _flag_option("split", "push by digest without a tag: one part for merge-multiarch")
IMAGE_NAMES = _list_option("image", "build, verify and run only this image of the settings", example="web")
NO_PUSH = _flag_option("no_push", "verify and run the image, and push nothing, whatever the outputs are")
BAKE_OPTIONS = (
    _list_option(
        "bake",
        "build, verify and run the targets of this bake file: HCL, JSON or compose",
        example="docker-bake.hcl",
    ),
    _list_option(
        "set", "with --bake: change a key of targets, TARGET.KEY=VALUE", example="web.args.VERSION=1"
    ),
)
CALL_OPTIONS = (
    _flag_option("check", "check the Dockerfile instead of building it, as --call=check"),
    _text_option(
        "call",
        "print what the Dockerfile's frontend says instead: check, outline or targets",
        example="outline",
    ),
)
PLATFORM = _list_option(
    "platform",
    "a platform such as linux/arm/v7, or several with commas",
    setting="platforms",
    example="linux/amd64,linux/arm64",
)
REPORT = _list_option(
    "report", "write the report to a file: .json, .xml (JUnit), .md, .html or .svg", example="report.xml"
)
RECREATE = _flag_option("recreate", "recreate the builder, and replace handlers that do not work")
KEEP_STATE = _flag_option("keep_state", "keep images and build cache")

VERIFY_OPTIONS = (
    _list_option(
        "allow_foreign",
        "a glob of paths whose binaries may be for another machine or need more than the baseline",
        setting="allow_foreign",
        example="opt/firmware/*",
    ),
    _text_option(
        "parity",
        "treat differences between platforms as: warn, fail or ignore",
        setting="parity",
        example="fail",
    ),
)
# Only of verify-arch: elsewhere `--timeout` is that of a run.
VERIFY_TIMEOUT = _text_option(
    "timeout",
    "seconds that verifying an image may take, then exit with 124 (default: no limit)",
    setting="verify_timeout",
    example="60",
)
# `for` is a Python keyword; the parser strips the underscore.
HOST_OPTIONS = (
    _list_option("for_", "only check whether the image would start on this platform", example="linux/arm64"),
    _text_option(
        "for_nodes",
        "the same for each node in a file with the output of `kubectl get nodes -o json`",
        example="nodes.json",
    ),
)

ENGINE_OPTIONS = (
    _text_option("engine", "auto, system (a running daemon) or private", setting="engine", example="auto"),
    _text_option(
        "emulators",
        "auto, host (this machine's or Debian's QEMU), image (tonistiigi/binfmt) or none",
        setting="emulators",
        example="auto",
    ),
)

FALLBACK = _text_option(
    "fallback",
    "emulate: build on other nodes what an unreachable node should build",
    setting="fallback",
    example="emulate",
)

ALLOW = _list_option(
    "allow", "an entitlement that builds may have: network.host", setting="allow", example="network.host"
)

SETUP_OPTIONS = (
    _text_option(
        "name",
        "the builder's name (default multi-platform-builder)",
        setting="name",
        example="multi-platform-builder",
    ),
    _text_option(
        "driver",
        "auto, docker-container, docker, remote or kubernetes",
        setting="driver",
        example="docker-container",
    ),
    _list_option(
        "driver_opt",
        "an option of the builder's driver, NAME=VALUE",
        setting="driver_opt",
        example="network=host",
    ),
    _list_option(
        "node",
        "a node of the builder: name=NAME,endpoint=URL,platform=linux/arm64,ca=FILE,cert=FILE,key=FILE",
        setting="nodes",
        example="name=arm,endpoint=ssh://arm.example.org",
    ),
    FALLBACK,
    _text_option(
        "buildkitd_config",
        "a buildkitd.toml for the builder's BuildKit",
        setting="buildkitd_config",
        example="buildkitd.toml",
    ),
    _list_option(
        "mirror",
        "a mirror of Docker Hub, https://HOST",
        setting="mirrors",
        example="https://mirror.example.org",
    ),
    ALLOW,
    PLATFORM,
    *ENGINE_OPTIONS,
)

TAG = _list_option(
    "tag",
    "a name for the image, REGISTRY/NAME:TAG, or several with commas",
    setting="tags",
    short="t",
    example="registry.example.org/app:1",
)

BUILD_OPTIONS = (
    _text_option(
        "context",
        "the build context: a folder or a URL (default: this folder)",
        setting="context",
        example=".",
    ),
    _text_option(
        "file",
        "the Dockerfile, or - for standard input (default: Dockerfile in the context)",
        setting="file",
        short="f",
        example="Dockerfile",
    ),
    TAG,
    _list_option(
        "output",
        "output as for buildx, type=oci,dest=FILE (default: an OCI archive in dist/)",
        short="o",
        example="type=oci,dest=dist/app.tar",
    ),
    _flag_option("push", "push it to the registries of its tags"),
    _flag_option("load", "load it into the engine's image store"),
    _list_option(
        "target",
        "the stage to build; with --bake a target or group of the file",
        setting="target",
        example="release",
    ),
    _list_option("build_arg", "NAME=VALUE for an ARG", setting="build_args", example="VERSION=1.2"),
    _list_option("build_context", "a named context, NAME=PATH-OR-URL", example="docs=./docs"),
    _list_option(
        "cache_from",
        "import the build cache from here; each platform also from its own scope",
        example="type=registry,ref=registry.example.org/app:cache",
    ),
    _list_option(
        "cache_to",
        "export the build cache to here; a build of one platform to its own scope",
        example="type=registry,ref=registry.example.org/app:cache",
    ),
    _list_option(
        "secret",
        "for RUN --mount=type=secret: id=NAME,env=VARIABLE or id=NAME,src=FILE",
        example="id=token,env=TOKEN",
    ),
    _list_option("ssh", "an agent or key for RUN --mount=type=ssh", example="default"),
    _list_option(
        "label", "NAME=VALUE in the image's configuration", example="org.opencontainers.image.version=1.2"
    ),
    _list_option(
        "annotation", "NAME=VALUE in the image's manifests", example="org.opencontainers.image.version=1.2"
    ),
    _list_option("attest", "an attestation, such as type=sbom", example="type=sbom"),
    _text_option("provenance", "false, true or mode=max", example="mode=max"),
    _text_option("sbom", "false or true", example="true"),
    _flag_option("no_attest", "no attestations; by default buildx adds provenance"),
    _flag_option(
        "reproducible", "build the same digest from the same source: fixed timestamps, no attestations"
    ),
    _flag_option("no_cache", "do not use the build cache"),
    _flag_option("pull", "always pull the base images"),
    _list_option("no_cache_filter", "do not use the build cache for this stage", example="build"),
    _text_option("progress", "auto, plain, tty, quiet, none or rawjson", setting="progress", example="plain"),
    _text_option("metadata_file", "also write buildx's metadata to this file", example="metadata.json"),
    _text_option("iidfile", "also write the image ID to this file", example="image.id"),
    _text_option(
        "network", "the network of RUN instructions: default, none or host", setting="network", example="none"
    ),
    _list_option(
        "add_host",
        "a host in /etc/hosts of RUN instructions, HOST:ADDRESS",
        setting="add_hosts",
        example="db:10.0.0.1",
    ),
    _text_option("shm_size", "the size of /dev/shm of RUN instructions", setting="shm_size", example="512m"),
    _list_option(
        "ulimit", "a limit of RUN instructions, NAME=SOFT:HARD", setting="ulimits", example="nofile=1024:2048"
    ),
    _list_option(
        "resource",
        "a limit of RUN instructions by cgroup, NAME=VALUE; newer versions of buildx only",
        example="memory=2g",
    ),
    _text_option(
        "cgroup_parent", "the parent cgroup of RUN instructions, on the builder's machine", example="builds"
    ),
    _text_option("builder", "the builder to use", setting="name", example="multi-platform-builder"),
    FALLBACK,
    ALLOW,
    _text_option("bases", "auto, registry (never stand-ins) or standin", setting="bases", example="registry"),
)

RUN_OPTIONS = (
    _text_option(
        "command", "run this command instead of the image's CMD", setting="command", example='"uname -m"'
    ),
    _text_option(
        "expect",
        "a regular expression that the output must match; {goarch}, {platform} and {machine} are filled in",
        setting="expect",
        example='"Hello from {goarch}"',
    ),
    _text_option("expect_exit", "the expected exit status (default 0)", setting="expect_exit", example="0"),
    _text_option(
        "runner", "auto, docker, or sandbox (without an engine)", setting="runner", example="sandbox"
    ),
    _text_option(
        "cpu",
        "max, floor (the oldest CPU of the platform's baseline), both, or a QEMU CPU model",
        setting="cpu",
        example="floor",
    ),
    _text_option(
        "timeout", "seconds that one platform may take (default 60)", setting="timeout", example="60"
    ),
    _text_option(
        "jobs",
        "how many run at once (default: two for each processor)",
        setting="jobs",
        short="j",
        example="4",
    ),
)
