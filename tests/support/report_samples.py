"""Sample reports of every kind: passed ones, and parts of failed ones."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from buildkit_tasks.report.model import (
    BuilderSummary,
    BuildResult,
    BuiltPlatform,
    Check,
    EmulatorSummary,
    EngineSummary,
    ImageReport,
    ImagesReport,
    MatrixReport,
    NamedTag,
    NodeSummary,
    Outcome,
    Output,
    PlatformSetup,
    PlatformVerdict,
    PushResult,
    Report,
    RunReport,
    RunResult,
    SetupReport,
    VerifyReport,
)

TEN = (
    "linux/amd64",
    "linux/arm64",
    "linux/arm/v7",
    "linux/arm/v6",
    "linux/386",
    "linux/ppc64le",
    "linux/s390x",
    "linux/riscv64",
    "linux/mips64le",
    "linux/loong64",
)
TWO = TEN[:2]
IMAGE = "oci-archive:dist/hello.tar"

_QEMU = {"arm64": "aarch64", "386": "i386", "mips64le": "mips64el", "loong64": "loongarch64"}


def digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def architecture_of(platform: str) -> str:
    """Return the architecture of a platform; other texts are returned unchanged."""
    return platform.split("/")[1] if platform.startswith("linux/") else platform


def qemu(platform: str) -> str:
    architecture = architecture_of(platform)
    return f"qemu-{_QEMU.get(architecture, architecture)}"


def platform_setup(platform: str) -> PlatformSetup:
    if platform == "linux/amd64":
        return PlatformSetup(platform=platform, native=True, node="hello0", runs=True)
    name = qemu(platform)
    return PlatformSetup(
        platform=platform,
        native=False,
        node="hello0",
        handler=name,
        interpreter=f"/usr/bin/{name}",
        flags="OCF",
        version="10.0.2",
        runs=True,
    )


def setup(*platforms: PlatformSetup) -> SetupReport:
    node = NodeSummary(name="hello0", endpoint="unix:///run/docker.sock", platforms=TWO)
    return SetupReport(
        engine=EngineSummary(
            kind="private",
            endpoint="unix:///run/docker.sock",
            version="28.5.2",
            store="containerd",
        ),
        builder=BuilderSummary(
            name="multi-platform-builder",
            driver="docker",
            nodes=(node,),
            reason="the engine has the containerd store",
        ),
        platforms=platforms or tuple(map(platform_setup, TWO)),
    )


def build(*platforms: str, ok: bool = True) -> BuildResult:
    built = (BuiltPlatform(platform=name, digest=digest(name)) for name in platforms or TWO)
    return BuildResult(
        digest=digest("index"),
        outputs=(Output(type="oci", dest="dist/hello.tar"), Output(type="image", ref="hello:latest")),
        platforms=tuple(built),
        builder="multi-platform-builder",
        bases="standin",
        seconds=41.25,
        ok=ok,
    )


def good_check(name: str = "config-platform") -> Check:
    return Check(name=name, ok=True, expected="linux/arm64", actual="linux/arm64")


def bad_check(**changes: str) -> Check:
    values: dict[str, Any] = {
        "name": "binary-machine",
        "expected": "arm64",
        "actual": "amd64",
        "path": "/hello",
        "layer": digest("layer"),
        "message": "the entry point is for amd64, and its image says arm64",
    }
    return Check(**{**values, **changes}, ok=False)


def warning(message: str = "linux/arm64 lacks /usr/bin/foo that linux/amd64 has") -> Check:
    path, layer = "/usr/bin/foo", digest("layer")
    return Check(name="parity", ok=True, warning=True, path=path, layer=layer, message=message)


def verdict(platform: str, *checks: Check) -> PlatformVerdict:
    default_checks = (good_check(), good_check("binary-machine"))
    return PlatformVerdict(platform=platform, digest=digest(platform), checks=checks or default_checks)


def verify(*verdicts: PlatformVerdict) -> VerifyReport:
    return VerifyReport(
        subject=IMAGE,
        digest=digest("index"),
        platforms=verdicts or tuple(map(verdict, TWO)),
    )


def good_run(platform: str, stdout: str | None = None, seconds: float = 0.25) -> RunResult:
    architecture = architecture_of(platform)
    native = platform == "linux/amd64"
    path = f"/usr/bin/{qemu(platform)}"
    return RunResult(
        platform=platform,
        outcome=Outcome.PASSED,
        exit_code=0,
        stdout=f"Hello from {architecture}\n" if stdout is None else stdout,
        seconds=seconds,
        emulated=not native,
        emulator=None if native else EmulatorSummary(path=path, version="10.0.2", cpu="max"),
        digest=digest(platform),
    )


def bad_run(
    platform: str,
    outcome: Outcome = Outcome.FAILED,
    *,
    stdout: str = "",
    stderr: str = "",
    message: str = "it printed something else",
) -> RunResult:
    return RunResult(
        platform=platform,
        outcome=outcome,
        exit_code=1,
        stdout=stdout,
        stderr=stderr,
        seconds=0.5,
        emulated=True,
        emulator=EmulatorSummary(path=f"/usr/bin/{qemu(platform)}", version="10.0.2", cpu="max"),
        message=message,
    )


def on_cpu(cpu: str, result: RunResult) -> RunResult:
    """Return the same run on a CPU model, for which programs of the host are emulated too."""
    path = f"/usr/bin/{qemu(result.platform)}"
    emulator = EmulatorSummary(path=path, version="10.0.2", cpu=cpu)
    return replace(result, emulated=True, emulator=emulator, runner="sandbox")


def both_cpus(floor: Outcome = Outcome.PASSED) -> RunReport:
    """Return runs of two platforms on two CPUs each; ``floor`` is the outcome of the last."""
    results = (
        replace(good_run("linux/amd64"), runner="sandbox"),
        on_cpu("qemu64", good_run("linux/amd64")),
        on_cpu("", good_run("linux/arm/v6")),
        on_cpu("arm1176", bad_run("linux/arm/v6", floor, stderr="qemu: uncaught", message="no GOARM=6")),
    )
    passed = on_cpu("arm1176", good_run("linux/arm/v6"))
    return run(*(results if floor is not Outcome.PASSED else (*results[:3], passed)))


def three_commands(*last: RunResult) -> RunReport:
    """Return the runs of three commands on two platforms, and then others."""
    commands = ("", "uname -m", "/bin/true -x")
    return run(*(replace(good_run(name), command=command) for name in TWO for command in commands), *last)


def run(*results: RunResult) -> RunReport:
    return RunReport(subject=IMAGE, results=results or tuple(map(good_run, TWO)))


def matrix(*platforms: str) -> MatrixReport:
    """Return a matrix that passed, by default on two platforms."""
    names = platforms or TWO
    return MatrixReport(
        setup=setup(*map(platform_setup, names)),
        build=build(*names),
        verify=verify(*map(verdict, names)),
        run=run(*map(good_run, names)),
    )


def stopped(error: str = "the registry refused: 401") -> MatrixReport:
    """Return a matrix that stopped after the build."""
    return MatrixReport(setup=setup(), build=build(), error=error)


def push(**changes: Any) -> PushResult:
    """Return a push that set a new tag, moved one and left one unchanged."""
    index = digest("index")
    values: dict[str, Any] = {
        "digest": index,
        "tags": (
            NamedTag(ref="example.org/app:1", digest=index),
            NamedTag(ref="example.org/app:2", digest=index, previous=digest("old")),
            NamedTag(ref="example.org/app:3", digest=index, previous=index, moved=False),
        ),
        "platforms": build().platforms,
        "verify": verify(),
        "run": run(),
        "seconds": 1.25,
    }
    return PushResult(**values | changes)


def image(name: str, *platforms: str) -> ImageReport:
    """Return one of several images that passed, by default on two platforms."""
    report = matrix(*platforms)
    return ImageReport(name=name, build=report.build, verify=report.verify, run=report.run)


def images(*reports: ImageReport) -> ImagesReport:
    """Return a report of these images, by default of two that passed."""
    return ImagesReport(images=reports or (image("web"), image("worker", "linux/arm64", "linux/386")))


def good_reports() -> list[Report]:
    two = ("linux/amd64", "linux/arm/v6")
    multi_run: list[Report] = [both_cpus(), three_commands(), replace(matrix(*two), run=both_cpus())]
    multi_run += [images(), replace(images(), setup=setup())]
    nodes = tuple(replace(each, node=f"node-{each.platform[-2:]}", native=True) for each in build().platforms)
    pushed: list[Report] = [
        push(),
        push(verify=None, run=None),
        replace(build(), platforms=nodes, pushed=push()),
    ]
    return [setup(), build(), verify(), run(), matrix(), *multi_run, *pushed]


def warning_reports() -> list[Report]:
    """Return reports that passed with two warnings each."""
    warned = verify(verdict("linux/amd64"), verdict("linux/arm64", good_check(), warning(), warning("other")))
    spread = verify(*(verdict(name, good_check(), warning()) for name in TWO))
    warned_image = replace(image("worker"), verify=warned)
    return [warned, spread, replace(matrix(), verify=warned), images(image("web"), warned_image)]


def bad_reports() -> list[Report]:
    """Return a report for each kind of failure, some without any platform."""
    unready = PlatformSetup(platform="linux/arm64", native=False, message="no handler is registered")
    failed = MatrixReport(
        setup=setup(),
        build=build(),
        verify=verify(verdict("linux/amd64"), verdict("linux/arm64", bad_check())),
        run=run(good_run("linux/amd64"), bad_run("linux/arm64", Outcome.WRONG_ARCH)),
    )
    empty_run = RunReport(subject=IMAGE, results=())
    return [
        setup(platform_setup("linux/amd64"), unready),
        replace(setup(), platforms=()),
        build(ok=False),
        BuildResult(digest="", outputs=(), platforms=(), builder="b", bases="", seconds=0, ok=False),
        verify(verdict("linux/amd64", good_check(), bad_check())),
        verify(verdict("linux/amd64"), verdict("linux/arm64", warning(), bad_check())),
        verify(PlatformVerdict(platform="linux/arm64", digest="", checks=())),
        VerifyReport(subject=IMAGE, digest="", platforms=()),
        *(run(bad_run("linux/arm64", outcome)) for outcome in Outcome if outcome is not Outcome.PASSED),
        empty_run,
        both_cpus(Outcome.ILLEGAL_INSTRUCTION),
        three_commands(replace(bad_run("linux/arm64"), command="uname -m")),
        replace(matrix("linux/amd64", "linux/arm/v6"), run=both_cpus(Outcome.ILLEGAL_INSTRUCTION)),
        failed,
        stopped(),
        stopped(error=""),
        MatrixReport(),
        MatrixReport(error="no engine answers"),
        MatrixReport(setup=setup(), build=build(), verify=verify(), run=run(), error="late"),
        MatrixReport(setup=setup(), build=build(), verify=verify(), run=empty_run),
        replace(matrix(), run=run(good_run("linux/amd64"))),
        replace(matrix(), setup=setup(platform_setup("linux/amd64"))),
        replace(matrix(), verify=verify(*map(verdict, (*TWO, "linux/s390x")))),
        *bad_image_reports(failed),
        push(tags=()),
        push(tags=(), run=failed.run),
        replace(build(ok=False), pushed=push(tags=(), run=None, verify=failed.verify)),
    ]


def bad_image_reports(failed: MatrixReport) -> list[Report]:
    """Return a report for each kind of failure of several images; ``failed`` has a failed step."""
    bad = ImageReport(name="bad", build=failed.build, verify=failed.verify, run=failed.run)
    unbuilt = ImageReport(name="unbuilt", error="the disk is full")
    return [
        images(image("web"), bad),
        images(unbuilt, image("web")),
        images(image("web"), ImageReport(name="empty")),
        images(replace(image("web"), verify=None, run=None, error="the registry refused: 401")),
        images(replace(image("web"), run=run(good_run("linux/amd64")))),
        images(replace(image("web"), verify=verify(*map(verdict, (*TWO, "linux/s390x"))))),
        ImagesReport(),
        ImagesReport(error="no engine answers"),
        ImagesReport(setup=setup(), error="no builder"),
        replace(images(), setup=replace(setup(), platforms=())),
    ]
