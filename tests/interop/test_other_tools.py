"""Verdicts on images that other people's tools made: sound ones pass, with exactly their platforms.

Each test prints what its tool made: the media types of the documents and of the layers, and how the
layers are packed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
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
from tests.interop.conftest import had
from tests.interop.gotools import KO, GoTool, buildx, go_environment
from tests.support.oci import hello, make_tar, probe_program, write_layout_dir
from tests.support.registry import real as registry
from tests.support.registry.serving import serve

THREE = ("linux/amd64", "linux/arm64", "linux/arm/v7")
# One of the time when most builds of today were set up, and the newest.
BUILDX = ("v0.12.1", "latest")
_RUN = SubprocessRunner(dry_run_output=sys.stderr)

pytestmark = pytest.mark.timeout(1800)  # on a new machine some tools are compiled first

Run = Callable[..., str]


def judged(name: str, *platforms: str) -> str:
    """The image passes for exactly these platforms; gives and prints what it is made of."""
    with open_image(name) as source:
        assert sorted(str(found) for found, _ in source.platform_manifests) == sorted(platforms)
        report = verify(source, [Platform.parse(each) for each in platforms], name)
        failed = [check.message for each in report.platforms for check in each.checks if not check.ok]
        assert report.ok, failed
        made = _made_of(source)
    sys.stdout.write(f"{name.partition(':')[0]}: {made}\n")
    return made


def refused(name: str, *words: str) -> None:
    """The image fails, with these words."""
    with open_image(name) as source:
        report = verify(source, [], name)
    said = "; ".join(check.message for each in report.platforms for check in each.checks if not check.ok)
    assert not report.ok
    assert [word for word in words if word not in said] == [], said


def _made_of(image: Image) -> str:
    index = image.index
    manifests = [image.manifest(entry) for _, entry in image.platform_manifests]
    kinds = {index.media_type, *(each.media_type for each in manifests)}
    kinds |= {layer.media_type for each in manifests for layer in each.layers}
    return ", ".join(sorted(kind.removeprefix("application/vnd.") for kind in kinds))


def ran(argv: list[str], env: Mapping[str, str], cwd: Path, timeout: float = 300) -> str:
    done = subprocess.run(
        argv, env=env, cwd=cwd, capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def debian(pytestconfig: pytest.Config) -> Path:
    """Debian's buildah, skopeo and umoci, unpacked for the tests alone."""
    prefix = cache_folder(load_settings()) / "debian/peers"
    wanted = PackageSet(names=("buildah", "skopeo", "umoci"), suite="host", with_dependencies=True)
    try:
        return install_packages(prefix, [wanted], _RUN, lambda _: None)
    except EngineError as error:
        if pytestconfig.getoption("--arch-require-engine"):
            raise
        pytest.skip(f"no Debian packages: {error.message}")


@pytest.fixture
def run(debian: Path, tmp_path: Path) -> Run:
    """Run one of them, with storage, policy and settings of its own; gives what it prints."""
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
    return lambda name, *words: ran([str(debian / "usr/bin" / name), *words], env, tmp_path)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A sound image of three platforms as an OCI layout, for tools that copy."""
    note = {"org.opencontainers.image.ref.name": "hello"}
    return write_layout_dir(hello(list(THREE)), tmp_path / "layout", **note)


def _built(run: Run, tmp_path: Path, platform: str) -> str:
    """One platform's image by buildah: from scratch, add, commit."""
    program = tmp_path / "main"
    program.write_bytes(probe_program(platform))
    program.chmod(0o755)
    parts = platform.split("/")
    variant = [f"--variant={parts[2]}"] if len(parts) > 2 else []
    container = run("buildah", "from", f"--os={parts[0]}", f"--arch={parts[1]}", *variant, "scratch")
    run("buildah", "add", container, str(program), "/main")
    run("buildah", "config", '--entrypoint=["/main"]', *variant, container)
    name = f"localhost/{'-'.join(parts)}"
    run("buildah", "commit", f"--signature-policy={tmp_path}/policy.json", container, name)
    return name


def test_buildah_manifest_list(run: Run, tmp_path: Path) -> None:
    run("buildah", "manifest", "create", "localhost/all")
    for platform in THREE:
        name = _built(run, tmp_path, platform)
        run("buildah", "manifest", "add", "localhost/all", f"containers-storage:{name}")
    policy = f"--signature-policy={tmp_path}/policy.json"
    for form in ("oci", "v2s2"):
        target = f"oci-archive:{tmp_path}/{form}.tar" if form == "oci" else f"dir:{tmp_path}/{form}"
        run("buildah", "manifest", "push", "--all", f"--format={form}", policy, "localhost/all", target)
    assert "oci.image.index" in judged(f"oci-archive:{tmp_path}/oci.tar", *THREE)
    # Docker's media types, as a folder of skopeo's; copied into a layout for us to read.
    run("skopeo", "--insecure-policy", "copy", "--all", f"dir:{tmp_path}/v2s2", f"oci:{tmp_path}/copied:x")
    judged(f"oci:{tmp_path}/copied:x", *THREE)


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive", "oci"])
def test_buildah_formats(run: Run, tmp_path: Path, transport: str) -> None:
    name = _built(run, tmp_path, "linux/arm64")
    named = ":localhost/x:latest" if transport == "docker-archive" else ""
    target = f"{transport}:{tmp_path}/out{named}"
    run("buildah", "push", f"--signature-policy={tmp_path}/policy.json", name, target)
    judged(f"{transport}:{tmp_path}/out", "linux/arm64")


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_skopeo_recompression(run: Run, tmp_path: Path, layout: Path, transport: str, packing: str) -> None:
    target = f"{transport}:{tmp_path}/out"
    words = ["--all", f"--dest-compress-format={packing}", "--dest-compress"]
    run("skopeo", "--insecure-policy", "copy", *words, f"oci:{layout}:hello", f"{target}:x")
    judged(target, *THREE)


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_skopeo_dir_transport(run: Run, tmp_path: Path, layout: Path, form: str) -> None:
    between = f"dir:{tmp_path}/between"
    run("skopeo", "--insecure-policy", "copy", "--all", f"--format={form}", f"oci:{layout}:hello", between)
    run("skopeo", "--insecure-policy", "copy", "--all", between, f"oci:{tmp_path}/out:x")
    judged(f"oci:{tmp_path}/out:x", *THREE)


def test_skopeo_docker_archive(run: Run, tmp_path: Path, layout: Path) -> None:
    chosen = ["--override-os=linux", "--override-arch=arm", "--override-variant=v7"]
    target = f"docker-archive:{tmp_path}/out.tar:hello:latest"
    run("skopeo", "--insecure-policy", *chosen, "copy", f"oci:{layout}:hello", target)
    judged(f"docker-archive:{tmp_path}/out.tar", "linux/arm/v7")


def _umoci(run: Run, tmp_path: Path, platform: str, says: str) -> str:
    """An image by umoci: new, insert, config."""
    program, image = tmp_path / "main", f"{tmp_path}/made:latest"
    program.write_bytes(probe_program(platform))
    program.chmod(0o755)
    run("umoci", "init", f"--layout={tmp_path}/made")
    run("umoci", "new", f"--image={image}")
    run("umoci", "insert", f"--image={image}", str(program), "/main")
    parts = says.split("/")
    words = [f"--os={parts[0]}", f"--architecture={parts[1]}", "--config.entrypoint=/main"]
    run("umoci", "config", f"--image={image}", *words)
    return f"oci:{image}"


def test_umoci_makes_an_image_by_hand(run: Run, tmp_path: Path) -> None:
    judged(_umoci(run, tmp_path, "linux/arm64", "linux/arm64"), "linux/arm64")


def test_umoci_misses_wrong_binary(run: Run, tmp_path: Path) -> None:
    refused(_umoci(run, tmp_path, "linux/amd64", "linux/arm64"), "/main is made for amd64, not for arm64")


def test_crane_append(crane: Path, tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(make_tar({"etc/motd": b"appended\n"}))
    env = {"PATH": os.defpath, "HOME": str(tmp_path)}
    with registry.serve(tmp_path) as host:
        registry.push(host, hello(list(THREE)), "base")
        tags = []
        for platform in THREE:
            tag = f"{host}/{platform.replace('/', '-')}:latest"
            words = [
                "append",
                "--insecure",
                f"--platform={platform}",
                f"--base={host}/base",
                "-f",
                "layer.tar",
            ]
            ran([str(crane), *words, f"--new_tag={tag}"], env, tmp_path)
            judged(f"docker://{tag}", platform)
            tags.append(f"--manifest={tag}")
        ran([str(crane), "index", "append", "--insecure", *tags, f"--tag={host}/all"], env, tmp_path)
        judged(f"docker://{host}/all", *THREE)
        for form, transport in (("oci", "oci"), ("tarball", "docker-archive")):
            pulled = ["pull", "--insecure", f"--format={form}", f"{host}/linux-arm64", f"{form}.out"]
            ran([str(crane), *pulled], env, tmp_path)
            judged(f"{transport}:{tmp_path}/{form}.out", "linux/arm64")


_HELLO_GO = 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("hello") }\n'


def test_ko_build(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    ko = had(KO, pytestconfig)
    source = tmp_path / "source"
    source.mkdir()
    (source / "main.go").write_text(_HELLO_GO, encoding="utf-8")
    (source / "go.mod").write_text("module example.com/hello\n\ngo 1.21\n", encoding="utf-8")
    with serve() as server:
        base = server.put("base", hello(list(THREE)))
        env = {**go_environment(), "KO_DEFAULTBASEIMAGE": base, "KO_DOCKER_REPO": f"{server.host}/hello"}
        words = [
            "build",
            "--push=false",
            "--insecure-registry",
            f"--oci-layout-path={tmp_path}/made",
            "--sbom=none",
        ]
        # ko would leave GOARM to the variant: v7 here.
        ran([str(ko), *words, f"--platform={','.join(THREE)}", "."], {**env, "HOME": str(tmp_path)}, source)
    judged(f"oci:{tmp_path}/made", *THREE)


_DOCKERFILE = """\
FROM scratch
ARG TARGETARCH TARGETVARIANT
COPY --chmod=755 main-${TARGETARCH}${TARGETVARIANT} /main
ENTRYPOINT ["/main"]
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A context from which every version of buildx builds three platforms without a network."""
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(_DOCKERFILE, encoding="utf-8")
    for platform in THREE:
        name = "".join(platform.split("/")[1:])
        (folder / f"main-{name}").write_bytes(probe_program(platform))
    return folder


def _build(argv: list[str], engine: Engine, context: Path, output: str) -> None:
    words = [
        "build",
        f"--platform={','.join(THREE)}",
        "--provenance=false",
        f"--output={output}",
        str(context),
    ]
    env = {**os.environ, **engine.env, "BUILDX_CONFIG": str(context.parent / "buildx")}
    ran([*argv, *words], env, context)


@pytest.fixture(params=["the engine's own", *BUILDX])
def builder(request: pytest.FixtureRequest, engine: Engine) -> Iterator[list[str]]:
    """buildx in several versions, each with the engine's own BuildKit."""
    if request.param not in BUILDX:
        yield list(engine.tools.buildx)
        return
    tool: GoTool = buildx(request.param)
    program = str(had(tool, request.config))
    sys.stdout.write(f"{program.split('/')[-2]}: ")
    yield [program]


@pytest.mark.parametrize("options", ["", ",compression=zstd,force-compression=true", ",oci-mediatypes=false"])
def test_buildx_of_several_versions(
    builder: list[str], engine: Engine, context: Path, tmp_path: Path, options: str
) -> None:
    _build(builder, engine, context, f"type=oci,dest={tmp_path}/made.tar{options}")
    judged(f"oci-archive:{tmp_path}/made.tar", *THREE)
