"""Every option of the tasks, declared once; the names for building are those of docker buildx."""

from __future__ import annotations

from buildkit_tasks.cli.invocation import Option

__all__ = [
    "ARCHIVE",
    "BAKE",
    "BUILD",
    "CACHE_STATE",
    "ENVIRONMENT",
    "HOSTS",
    "IMAGE",
    "IMAGES",
    "NO_VERIFY",
    "PARTS",
    "PLATFORM",
    "RECREATE",
    "REPORT",
    "RUN",
    "SETUP",
    "SPLIT",
    "TAG",
    "VERIFY",
]


def _list(name: str, text: str, *, setting: str = "", short: str = "") -> Option:
    return Option(name=name, help=f"{text}; repeatable", default=(), setting=setting, short=short)


def _flag(name: str, text: str) -> Option:
    return Option(name=name, help=text, default=False)


def _text(name: str, text: str, *, setting: str = "", short: str = "") -> Option:
    return Option(name=name, help=text, setting=setting, short=short)


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
PARTS = (
    _list("part", "an image of one platform that was pushed by digest, REPO@sha256:..."),
    _list("parts_file", "a file with one REPO@sha256:... a line, or what build-multiarch --json printed"),
    _text("image", "the one of several images whose parts these are, by its name"),
)
NO_VERIFY = _flag("no_verify", "name it without proof: neither verified nor run before")
SPLIT = _flag("split", "push by digest and name nothing: a part of one platform, for merge-multiarch")
IMAGES = _list("image", "build, verify and run only this image of the settings, by its name")
BAKE = _text("bake", "build, verify and run the targets of this bake file: HCL, JSON or compose")
PLATFORM = _list("platform", "a platform such as linux/arm/v7, or several with commas", setting="platforms")
REPORT = _list("report", "write the report to a file: .json, .xml (JUnit), .md, .html or .svg")
RECREATE = _flag("recreate", "make the builder anew, and replace handlers that do not work")
CACHE_STATE = _flag("keep_state", "keep images and build cache")

VERIFY = (
    _list(
        "allow_foreign",
        "a glob of paths that may hold binaries of another machine or a larger instruction set",
        setting="allow_foreign",
    ),
    _text("parity", "what a difference between platforms is: warn, fail or off", setting="parity"),
)
# `for` is a word of Python's own; Invoke takes the underscore off.
HOSTS = (
    _list("for_", "say only whether the image would start on this platform, and if not, why"),
    _text("for_nodes", "the same for a cluster: what `kubectl get nodes -o json` prints, in a file"),
)

ENVIRONMENT = (
    _text("engine", "auto, system (only a daemon that is there) or private", setting="engine"),
    _text(
        "emulators",
        "auto, host (QEMU from here or Debian), image (tonistiigi/binfmt) or none",
        setting="emulators",
    ),
)

FALLBACK = _text(
    "fallback", "emulate: other nodes take over from one that does not answer", setting="fallback"
)

ALLOW = _list("allow", "an entitlement that builds may have: network.host", setting="allow")

SETUP = (
    _text("name", "the builder's name (default multi-platform-builder)", setting="name"),
    _text("driver", "auto, docker-container, docker, remote or kubernetes", setting="driver"),
    _list("driver_opt", "an option of the builder's driver, NAME=VALUE", setting="driver_opt"),
    _list(
        "node",
        "a node of the builder: name=NAME,endpoint=PLACE,platform=linux/arm64,ca=FILE,cert=FILE,key=FILE",
        setting="nodes",
    ),
    FALLBACK,
    _text("buildkitd_config", "a buildkitd.toml for the builder's BuildKit", setting="buildkitd_config"),
    _list("mirror", "a mirror of Docker Hub, https://HOST", setting="mirrors"),
    ALLOW,
    PLATFORM,
    *ENVIRONMENT,
)

TAG = _list(
    "tag", "a name for the image, REGISTRY/NAME:TAG, or several with commas", setting="tags", short="t"
)

BUILD = (
    _text("context", "the build context: a folder or a URL (default: this folder)", setting="context"),
    _text("file", "the Dockerfile (default: Dockerfile in the context)", setting="file", short="f"),
    TAG,
    _list(
        "output",
        "where it goes, as for buildx: type=oci,dest=FILE (default: an OCI archive in dist/)",
        short="o",
    ),
    _flag("push", "push it to the registries of its tags"),
    _flag("load", "load it into the engine's image store"),
    _list("target", "the stage to build; with --bake a target or group of the file", setting="target"),
    _list("build_arg", "NAME=VALUE for an ARG", setting="build_args"),
    _list("build_context", "another context, NAME=PLACE"),
    _list("cache_from", "where cache is imported from, each platform from a scope of its own as well"),
    _list("cache_to", "where cache is exported to; a build of one platform has a scope of its own there"),
    _list("secret", "for RUN --mount=type=secret: id=NAME,env=VARIABLE or id=NAME,src=FILE"),
    _list("ssh", "an agent or key for RUN --mount=type=ssh"),
    _list("label", "NAME=VALUE in the image's configuration"),
    _list("annotation", "NAME=VALUE in the image's manifests"),
    _list("attest", "an attestation, such as type=sbom"),
    _text("provenance", "false, true or mode=max"),
    _text("sbom", "false or true"),
    _flag("no_attest", "no attestation at all: buildx adds a provenance by itself"),
    _flag("reproducible", "the same bytes from the same source: one time for everything, no attestations"),
    _flag("no_cache", "build every step anew"),
    _flag("pull", "look for newer bases in their registries"),
    _text("progress", "auto, plain, tty, quiet or rawjson", setting="progress"),
    _text("metadata_file", "also write buildx's metadata to this file"),
    _text("builder", "the builder to use", setting="name"),
    FALLBACK,
    ALLOW,
    _text("bases", "auto, registry (never stand-ins) or standin", setting="bases"),
)

RUN = (
    _text("command", "run this instead of the image's CMD", setting="command"),
    _text(
        "expect",
        "a regular expression for what it prints; {goarch}, {platform}, {machine} are filled in",
        setting="expect",
    ),
    _text("expect_exit", "its exit status (default 0)", setting="expect_exit"),
    _text("runner", "auto, docker, or sandbox (without an engine)", setting="runner"),
    _text(
        "cpu",
        "max, floor (the oldest CPU that the platform's name promises), both, or a model of QEMU's",
        setting="cpu",
    ),
    _text("timeout", "seconds that one platform may take (default 60)", setting="timeout"),
    _text("jobs", "how many run at once (default: two for each processor)", setting="jobs", short="j"),
)
