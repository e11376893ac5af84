"""Every option of the tasks, declared once; the names for building are those of docker buildx."""

from __future__ import annotations

from buildkit_tasks.cli.invocation import Option

__all__ = [
    "ARCHIVE",
    "BAKE_FILE",
    "BUILD_OPTIONS",
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
]


def _list_option(name: str, help_text: str, *, setting: str = "", short: str = "") -> Option:
    return Option(name=name, help=f"{help_text}; repeatable", default=(), setting=setting, short=short)


def _flag_option(name: str, help_text: str) -> Option:
    return Option(name=name, help=help_text, default=False)


def _text_option(name: str, help_text: str, *, setting: str = "", short: str = "") -> Option:
    return Option(name=name, help=help_text, setting=setting, short=short)


IMAGE = Option(
    name="image",
    help="REF or docker://REF (a registry), docker-daemon:REF, oci:DIR, oci-archive:FILE, "
    "docker-archive:FILE, dir:DIR or a path (default: built last here)",
    positional=True,
)
ARCHIVE = Option(
    name="archive",
    help="oci-archive:FILE, oci:DIR, any other image, or a path (default: built last here)",
    positional=True,
)
PART_OPTIONS = (
    _list_option("part", "an image of one platform that was pushed by digest, REPO@sha256:..."),
    _list_option(
        "parts_file", "a file with one REPO@sha256:... a line, or what build-multiarch --json printed"
    ),
    _text_option("image", "the one of several images whose parts these are, by its name"),
)
NO_VERIFY = _flag_option("no_verify", "name it without proof: neither verified nor run before")
SPLIT = _flag_option("split", "push by digest and name nothing: a part of one platform, for merge-multiarch")
IMAGE_NAMES = _list_option("image", "build, verify and run only this image of the settings, by its name")
BAKE_FILE = _text_option("bake", "build, verify and run the targets of this bake file: HCL, JSON or compose")
PLATFORM = _list_option(
    "platform", "a platform such as linux/arm/v7, or several with commas", setting="platforms"
)
REPORT = _list_option("report", "write the report to a file: .json, .xml (JUnit), .md, .html or .svg")
RECREATE = _flag_option("recreate", "make the builder anew, and replace handlers that do not work")
KEEP_STATE = _flag_option("keep_state", "keep images and build cache")

VERIFY_OPTIONS = (
    _list_option(
        "allow_foreign",
        "a glob of paths that may hold binaries of another machine or a larger instruction set",
        setting="allow_foreign",
    ),
    _text_option("parity", "what a difference between platforms is: warn, fail or off", setting="parity"),
)
# `for` is a word of Python's own; Invoke takes the underscore off.
HOST_OPTIONS = (
    _list_option("for_", "say only whether the image would start on this platform, and if not, why"),
    _text_option("for_nodes", "the same for a cluster: what `kubectl get nodes -o json` prints, in a file"),
)

ENGINE_OPTIONS = (
    _text_option("engine", "auto, system (only a daemon that is there) or private", setting="engine"),
    _text_option(
        "emulators",
        "auto, host (QEMU from here or Debian), image (tonistiigi/binfmt) or none",
        setting="emulators",
    ),
)

FALLBACK = _text_option(
    "fallback", "emulate: other nodes take over from one that does not answer", setting="fallback"
)

ALLOW = _list_option("allow", "an entitlement that builds may have: network.host", setting="allow")

SETUP_OPTIONS = (
    _text_option("name", "the builder's name (default multi-platform-builder)", setting="name"),
    _text_option("driver", "auto, docker-container, docker, remote or kubernetes", setting="driver"),
    _list_option("driver_opt", "an option of the builder's driver, NAME=VALUE", setting="driver_opt"),
    _list_option(
        "node",
        "a node of the builder: name=NAME,endpoint=PLACE,platform=linux/arm64,ca=FILE,cert=FILE,key=FILE",
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
        "where it goes, as for buildx: type=oci,dest=FILE (default: an OCI archive in dist/)",
        short="o",
    ),
    _flag_option("push", "push it to the registries of its tags"),
    _flag_option("load", "load it into the engine's image store"),
    _list_option("target", "the stage to build; with --bake a target or group of the file", setting="target"),
    _list_option("build_arg", "NAME=VALUE for an ARG", setting="build_args"),
    _list_option("build_context", "another context, NAME=PLACE"),
    _list_option("cache_from", "where cache is imported from, each platform from a scope of its own as well"),
    _list_option(
        "cache_to", "where cache is exported to; a build of one platform has a scope of its own there"
    ),
    _list_option("secret", "for RUN --mount=type=secret: id=NAME,env=VARIABLE or id=NAME,src=FILE"),
    _list_option("ssh", "an agent or key for RUN --mount=type=ssh"),
    _list_option("label", "NAME=VALUE in the image's configuration"),
    _list_option("annotation", "NAME=VALUE in the image's manifests"),
    _list_option("attest", "an attestation, such as type=sbom"),
    _text_option("provenance", "false, true or mode=max"),
    _text_option("sbom", "false or true"),
    _flag_option("no_attest", "no attestation at all: buildx adds a provenance by itself"),
    _flag_option(
        "reproducible", "the same bytes from the same source: one time for everything, no attestations"
    ),
    _flag_option("no_cache", "build every step anew"),
    _flag_option("pull", "look for newer bases in their registries"),
    _text_option("progress", "auto, plain, tty, quiet or rawjson", setting="progress"),
    _text_option("metadata_file", "also write buildx's metadata to this file"),
    _text_option("builder", "the builder to use", setting="name"),
    FALLBACK,
    ALLOW,
    _text_option("bases", "auto, registry (never stand-ins) or standin", setting="bases"),
)

RUN_OPTIONS = (
    _text_option("command", "run this instead of the image's CMD", setting="command"),
    _text_option(
        "expect",
        "a regular expression for what it prints; {goarch}, {platform}, {machine} are filled in",
        setting="expect",
    ),
    _text_option("expect_exit", "its exit status (default 0)", setting="expect_exit"),
    _text_option("runner", "auto, docker, or sandbox (without an engine)", setting="runner"),
    _text_option(
        "cpu",
        "max, floor (the oldest CPU that the platform's name promises), both, or a model of QEMU's",
        setting="cpu",
    ),
    _text_option("timeout", "seconds that one platform may take (default 60)", setting="timeout"),
    _text_option("jobs", "how many run at once (default: two for each processor)", setting="jobs", short="j"),
)
