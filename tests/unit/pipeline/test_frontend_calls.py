from __future__ import annotations

import pytest

from buildkit_tasks.build.execute import FrontendAnswer
from buildkit_tasks.build.request import BuildRequest
from buildkit_tasks.errors import UsageError
from buildkit_tasks.pipeline.frontend_calls import call_frontends, make_call_document
from buildkit_tasks.pipeline.multi_image import ImageSelection
from buildkit_tasks.pipeline.pipeline import Pipeline
from tests.unit.pipeline.test_multi_image import BASE_TARGET, WEB_ON_BASE, Harness, harness, write_bake_file

__all__ = ["harness"]  # a fixture

GOOD = FrontendAnswer(output='{"warnings": []}\n', exit_code=0)


@pytest.fixture(autouse=True)
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Let every frontend answer the same; return the context and the method of each call."""
    calls: list[tuple[str, str]] = []

    def call(_: Pipeline, request: BuildRequest) -> FrontendAnswer:
        calls.append((request.context, request.call))
        return GOOD

    monkeypatch.setattr(Pipeline, "call_frontend", call)
    return calls


def test_selected_images(harness: Harness, called: list[tuple[str, str]]) -> None:
    selection = ImageSelection(names=("tool",), options={"call": "check"})
    assert dict(call_frontends(harness.pipeline(), selection, None)) == {"tool": GOOD}
    assert called == [("tool", "check")]


def test_target_on_other_target(harness: Harness, called: list[tuple[str, str]]) -> None:
    write_bake_file(harness, {**BASE_TARGET, "web": WEB_ON_BASE}, ["web"])
    selection = ImageSelection(bake_files=("docker-bake.hcl",), options={"call": "check"})
    with pytest.raises(UsageError, match="web is built on base, which --call=check does not build") as caught:
        list(call_frontends(harness.pipeline(), selection, None))
    assert caught.value.hint == "docker buildx bake --file=docker-bake.hcl --call=check web"
    assert called == []


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("foo", "--call="), ("chek", "--call=check"), ("target,format=json", "--call=targets")],
)
def test_unknown_method(typed: str, hint: str, harness: Harness, called: list[tuple[str, str]]) -> None:
    selection = ImageSelection(names=("tool",), options={"call": typed})
    request = harness.pipeline().create_request(call=typed)
    for arguments in ((selection, None), (None, request)):
        with pytest.raises(UsageError, match="check, outline, targets") as excinfo:
            list(call_frontends(harness.pipeline(), *arguments))
        assert (excinfo.value.hint or "").startswith(hint)
    assert called == []


def test_null_is_an_empty_list() -> None:
    document = make_call_document({"": FrontendAnswer(output='{"warnings": null}', exit_code=0)})
    assert document["results"][0]["result"] == {"warnings": []}


def test_document() -> None:
    error = UsageError("no access to https://me:secret@git.example/a")
    document = make_call_document({"web": GOOD, "tool": FrontendAnswer(output="", exit_code=1, error=error)})
    assert document["ok"] is False
    assert document["results"] == [
        {"image": "web", "ok": True, "result": {"warnings": []}, "error": ""},
        {
            "image": "tool",
            "ok": False,
            "result": None,
            "error": "no access to https://***@git.example/a",
        },
    ]
