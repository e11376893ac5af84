from __future__ import annotations

import pytest

from buildkit_tasks.platforms import Platform
from buildkit_tasks.run.outcomes import ProcessResult
from buildkit_tasks.run.qemu_env import explain_cpu_refusal

S390X = Platform.parse("linux/s390x")

UNKNOWN = "qemu-aarch64: unable to find CPU model 'nosuch'\n"
PROPERTY = "qemu-aarch64: can't apply global max-arm-cpu.x=on: Property 'max-arm-cpu.x' not found\n"
Z13 = "qemu-s390x: Some features requested in the CPU model are not available: " + "feature " * 200 + "\n"
NAN_MODE = "ELF binary's NaN mode not supported by CPU\n"


def explain(
    stderr: str, *, cpu: str = "m", status: int = 1, stdout: str = "", emulator: str = "/q/qemu-x"
) -> str:
    result = ProcessResult(exit_code=status, stdout=stdout, stderr=stderr, emulated=True, cpu=cpu)
    return explain_cpu_refusal(result, S390X, emulator)


def test_unknown_cpu_model() -> None:
    message = "linux/s390x: QEMU has no CPU model 'nosuch'; '/q/qemu-x -cpu help' lists the models"
    assert explain(UNKNOWN, cpu="nosuch") == message
    assert "'qemu-s390x -cpu help'" in explain(UNKNOWN, emulator="")


@pytest.mark.parametrize("stderr", [PROPERTY, Z13, NAN_MODE, "qemu-x86_64: Property 'a.b' not found\n"])
def test_unsupported_cpu_model(stderr: str) -> None:
    message = explain(f"qemu-x: warning: TCG doesn't support requested feature\n{stderr}")
    assert message.startswith("linux/s390x: QEMU does not run as CPU model 'm' (")
    assert stderr.strip()[:60] in message
    assert message.endswith("; '/q/qemu-x -cpu help' lists others")
    assert len(message) < 400


def test_guest_prints_qemu_error() -> None:
    assert explain(UNKNOWN, cpu="") == ""
    assert explain(UNKNOWN, status=2) == ""
    assert explain(UNKNOWN, stdout="started") == ""
    assert explain("the log has qemu-x: unable to find CPU model\n") == ""
