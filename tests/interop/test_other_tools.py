"""Verify images that other tools made: valid images pass, with exactly their platforms.

Each test prints the media types of the documents and layers of its image.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.platforms import Platform
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import PackageSet, install_packages
from buildkit_tasks.verify import verify
from tests.interop.conftest import require_tool
from tests.support.go_tools import KO, buildx_tool, go_environment
from tests.support.oci import hello, make_tar, probe_program, write_layout_dir
from tests.support.registry import real as registry
from tests.support.registry.image_server import serve

THREE = ("linux/amd64", "linux/arm64", "linux/arm/v7")
# An old version of buildx that is still in use: 0.13, and easier to have than by compiling it.
_OLD_BUILDX = PackageSet(names=("docker-buildx",), suite="trixie")
_RUNNER = SubprocessRunner(dry_run_output=sys.stderr)

pytestmark = pytest.mark.timeout(1800)  # some tools may have to be compiled first

RunTool = Callable[..., str]


def check_passes(name: str, *platforms: str) -> str:
    """Check that the image passes for exactly these platforms; print and return its media types."""
    with open_image(name) as source:
        assert sorted(str(platform) for platform, _ in source.platform_manifests) == sorted(platforms)
        report = verify(source, [Platform.parse(each) for each in platforms], name)
        failed = [check.message for each in report.platforms for check in each.checks if not check.ok]
        assert report.ok, failed
        media_types = _media_types(source)
    sys.stdout.write(f"{name.partition(':')[0]}: {media_types}\n")
    return media_types


def check_fails(name: str, message: str) -> None:
    """Check that verification of the image fails with this message."""
    with open_image(name) as source:
        report = verify(source, [], name)
    messages = "; ".join(check.message for each in report.platforms for check in each.checks if not check.ok)
    assert not report.ok
    assert message in messages, messages


def _media_types(image: Image) -> str:
    index = image.index
    manifests = [image.manifest(entry) for _, entry in image.platform_manifests]
    kinds = {index.media_type, *(each.media_type for each in manifests)}
    kinds |= {layer.media_type for each in manifests for layer in each.layers}
    return ", ".join(sorted(kind.removeprefix("application/vnd.") for kind in kinds))


def run_checked(argv: list[str], env: Mapping[str, str], cwd: Path, timeout: float = 300) -> str:
    result = subprocess.run(
        argv, env=env, cwd=cwd, capture_output=True, text=True, check=False, timeout=timeout
    )
    assert result.returncode == 0, f"{argv}: {result.stdout}{result.stderr}"
    return result.stdout.strip()


@pytest.fixture(scope="module")
def debian(pytestconfig: pytest.Config) -> Path:
    """Debian's buildah, skopeo and umoci, unpacked into the cache directory."""
    packages = PackageSet(names=("buildah", "skopeo", "umoci"), suite="host", with_dependencies=True)
    return _install_from_debian("peers", packages, pytestconfig)


def _install_from_debian(name: str, packages: PackageSet, config: pytest.Config) -> Path:
    prefix = cache_folder(load_settings()) / "debian" / name
    try:
        return install_packages(prefix, [packages], _RUNNER, lambda _: None)
    except EngineError as error:
        if config.getoption("--arch-require-engine"):
            raise
        pytest.skip(f"Debian packages are not available: {error.message}")


@pytest.fixture
def run_tool(debian: Path, tmp_path: Path) -> RunTool:
    """Run one of these tools with its own storage, policy and settings, and return its output."""
    storage = {"driver": "vfs", "graphroot": str(tmp_path / "graph"), "runroot": str(tmp_path / "run")}
    rows = "".join(f"{name} = {json.dumps(value)}\n" for name, value in storage.items())
    (tmp_path / "storage.conf").write_text(f"[storage]\n{rows}", encoding="utf-8")
    (tmp_path / "registries.conf").touch()
    (tmp_path / "policy.json").write_text(
        '{"default": [{"type": "insecureAcceptAnything"}]}', encoding="utf-8"
    )
    libraries = sorted({str(path.parent) for path in debian.glob("usr/lib/*/*.so.*")})
    env = {
        **os.environ,
        "PATH": f"{debian}/usr/bin:{debian}/usr/sbin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": ":".join(libraries),
        "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf"),
        "CONTAINERS_REGISTRIES_CONF": str(tmp_path / "registries.conf"),
        "BUILDAH_ISOLATION": "chroot",
        "HOME": str(tmp_path),
    }
    return lambda name, *args: run_checked([str(debian / "usr/bin" / name), *args], env, tmp_path)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A valid image for three platforms as an OCI layout, for tools that copy images."""
    annotations = {"org.opencontainers.image.ref.name": "hello"}
    return write_layout_dir(hello(list(THREE)), tmp_path / "layout", **annotations)


def _build_with_buildah(run_tool: RunTool, tmp_path: Path, platform: str) -> str:
    """Build an image for one platform with buildah from, add, config and commit."""
    program = tmp_path / "main"
    program.write_bytes(probe_program(platform))
    program.chmod(0o755)
    parts = platform.split("/")
    variant = [f"--variant={parts[2]}"] if len(parts) > 2 else []
    container = run_tool("buildah", "from", f"--os={parts[0]}", f"--arch={parts[1]}", *variant, "scratch")
    run_tool("buildah", "add", container, str(program), "/main")
    run_tool("buildah", "config", '--entrypoint=["/main"]', *variant, container)
    name = f"localhost/{'-'.join(parts)}"
    run_tool("buildah", "commit", f"--signature-policy={tmp_path}/policy.json", container, name)
    return name


def test_buildah_manifest_list(run_tool: RunTool, tmp_path: Path) -> None:
    run_tool("buildah", "manifest", "create", "localhost/all")
    for platform in THREE:
        name = _build_with_buildah(run_tool, tmp_path, platform)
        run_tool("buildah", "manifest", "add", "localhost/all", f"containers-storage:{name}")
    policy = f"--signature-policy={tmp_path}/policy.json"
    for form in ("oci", "v2s2"):
        target = f"oci-archive:{tmp_path}/{form}.tar" if form == "oci" else f"dir:{tmp_path}/{form}"
        run_tool("buildah", "manifest", "push", "--all", f"--format={form}", policy, "localhost/all", target)
    assert "oci.image.index" in check_passes(f"oci-archive:{tmp_path}/oci.tar", *THREE)
    # The dir: transport has Docker's media types; copy it to a layout, which open_image supports.
    run_tool(
        "skopeo", "--insecure-policy", "copy", "--all", f"dir:{tmp_path}/v2s2", f"oci:{tmp_path}/copied:x"
    )
    check_passes(f"oci:{tmp_path}/copied:x", *THREE)


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive", "oci"])
def test_buildah_formats(run_tool: RunTool, tmp_path: Path, transport: str) -> None:
    name = _build_with_buildah(run_tool, tmp_path, "linux/arm64")
    named = ":localhost/x:latest" if transport == "docker-archive" else ""
    target = f"{transport}:{tmp_path}/out{named}"
    run_tool("buildah", "push", f"--signature-policy={tmp_path}/policy.json", name, target)
    check_passes(f"{transport}:{tmp_path}/out", "linux/arm64")


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_skopeo_recompression(
    run_tool: RunTool, tmp_path: Path, layout: Path, transport: str, compression: str
) -> None:
    target = f"{transport}:{tmp_path}/out"
    options = ["--all", f"--dest-compress-format={compression}", "--dest-compress"]
    run_tool("skopeo", "--insecure-policy", "copy", *options, f"oci:{layout}:hello", f"{target}:x")
    check_passes(target, *THREE)


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_skopeo_dir_transport(run_tool: RunTool, tmp_path: Path, layout: Path, form: str) -> None:
    directory = f"dir:{tmp_path}/directory"
    run_tool(
        "skopeo", "--insecure-policy", "copy", "--all", f"--format={form}", f"oci:{layout}:hello", directory
    )
    run_tool("skopeo", "--insecure-policy", "copy", "--all", directory, f"oci:{tmp_path}/out:x")
    check_passes(f"oci:{tmp_path}/out:x", *THREE)


def test_skopeo_docker_archive(run_tool: RunTool, tmp_path: Path, layout: Path) -> None:
    options = ["--override-os=linux", "--override-arch=arm", "--override-variant=v7"]
    target = f"docker-archive:{tmp_path}/out.tar:hello:latest"
    run_tool("skopeo", "--insecure-policy", *options, "copy", f"oci:{layout}:hello", target)
    check_passes(f"docker-archive:{tmp_path}/out.tar", "linux/arm/v7")


def _build_with_umoci(run_tool: RunTool, tmp_path: Path, platform: str, stated: str) -> str:
    """Build an image with umoci init, new, insert and config; its config states another platform."""
    program, image = tmp_path / "main", f"{tmp_path}/out:latest"
    program.write_bytes(probe_program(platform))
    program.chmod(0o755)
    run_tool("umoci", "init", f"--layout={tmp_path}/out")
    run_tool("umoci", "new", f"--image={image}")
    run_tool("umoci", "insert", f"--image={image}", str(program), "/main")
    parts = stated.split("/")
    options = [f"--os={parts[0]}", f"--architecture={parts[1]}", "--config.entrypoint=/main"]
    run_tool("umoci", "config", f"--image={image}", *options)
    return f"oci:{image}"


def test_umoci_image(run_tool: RunTool, tmp_path: Path) -> None:
    check_passes(_build_with_umoci(run_tool, tmp_path, "linux/arm64", "linux/arm64"), "linux/arm64")


def test_umoci_image_with_wrong_binary(run_tool: RunTool, tmp_path: Path) -> None:
    check_fails(
        _build_with_umoci(run_tool, tmp_path, "linux/amd64", "linux/arm64"),
        "/main is made for amd64, not for arm64",
    )


def test_crane_append(crane: Path, tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(make_tar({"etc/motd": b"appended\n"}))
    env = {"PATH": os.defpath, "HOME": str(tmp_path)}
    with registry.serve(tmp_path) as host:
        registry.push(host, hello(list(THREE)), "base")
        tags = []
        for platform in THREE:
            tag = f"{host}/{platform.replace('/', '-')}:latest"
            options = ["--insecure", f"--platform={platform}", f"--base={host}/base", "-f", "layer.tar"]
            run_checked([str(crane), "append", *options, f"--new_tag={tag}"], env, tmp_path)
            check_passes(f"docker://{tag}", platform)
            tags.append(f"--manifest={tag}")
        run_checked([str(crane), "index", "append", "--insecure", *tags, f"--tag={host}/all"], env, tmp_path)
        check_passes(f"docker://{host}/all", *THREE)
        for form, transport in (("oci", "oci"), ("tarball", "docker-archive")):
            pulled = ["pull", "--insecure", f"--format={form}", f"{host}/linux-arm64", f"{form}.out"]
            run_checked([str(crane), *pulled], env, tmp_path)
            check_passes(f"{transport}:{tmp_path}/{form}.out", "linux/arm64")


_HELLO_GO = 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("hello") }\n'


def test_ko_build(tmp_path: Path) -> None:
    ko = require_tool(KO)
    source = tmp_path / "source"
    source.mkdir()
    (source / "main.go").write_text(_HELLO_GO, encoding="utf-8")
    (source / "go.mod").write_text("module example.com/hello\n\ngo 1.21\n", encoding="utf-8")
    with serve() as server:
        base = server.put("base", hello(list(THREE)))
        env = {**go_environment(), "KO_DEFAULTBASEIMAGE": base, "KO_DOCKER_REPO": f"{server.host}/hello"}
        options = ["--push=false", "--insecure-registry", f"--oci-layout-path={tmp_path}/out", "--sbom=none"]
        argv = [str(ko), "build", *options, f"--platform={','.join(THREE)}", "."]
        # ko sets GOARM from the variant: 7 here.
        run_checked(argv, {**env, "HOME": str(tmp_path)}, source)
    check_passes(f"oci:{tmp_path}/out", *THREE)


_DOCKERFILE = """\
FROM scratch
ARG TARGETARCH TARGETVARIANT
COPY --chmod=755 main-${TARGETARCH}${TARGETVARIANT} /main
ENTRYPOINT ["/main"]
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A build context for three platforms that needs no network."""
    directory = tmp_path / "context"
    directory.mkdir()
    (directory / "Dockerfile").write_text(_DOCKERFILE, encoding="utf-8")
    for platform in THREE:
        name = "".join(platform.split("/")[1:])
        (directory / f"main-{name}").write_bytes(probe_program(platform))
    return directory


def _build_with_buildx(argv: list[str], engine: Engine, context: Path, output: str) -> None:
    options = [f"--platform={','.join(THREE)}", "--provenance=false", f"--output={output}"]
    env = {**os.environ, **engine.env, "BUILDX_CONFIG": str(context.parent / "buildx")}
    run_checked([*argv, "build", *options, str(context)], env, context)


@pytest.fixture(params=["installed", "old", "latest"])
def buildx_argv(request: pytest.FixtureRequest, engine: Engine) -> list[str]:
    """Several versions of buildx, each with the BuildKit of the engine."""
    if request.param == "installed":
        return list(engine.tools.buildx)
    if request.param == "latest":
        return [str(require_tool(buildx_tool("latest")))]
    prefix = _install_from_debian("old-buildx", _OLD_BUILDX, request.config)
    return [str(prefix / "usr/libexec/docker/cli-plugins/docker-buildx")]


@pytest.mark.parametrize("options", ["", ",compression=zstd,force-compression=true", ",oci-mediatypes=false"])
def test_buildx_versions(
    buildx_argv: list[str], engine: Engine, context: Path, tmp_path: Path, options: str
) -> None:
    _build_with_buildx(buildx_argv, engine, context, f"type=oci,dest={tmp_path}/out.tar{options}")
    check_passes(f"oci-archive:{tmp_path}/out.tar", *THREE)
