from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.build.bake.plan import BakePlan, parse_bake_plan
from buildkit_tasks.build.bake.target import BakeTargetReader
from buildkit_tasks.build.outputs import OutputSpec
from buildkit_tasks.errors import BuilderError, UsageError
from buildkit_tasks.system.csv_fields import parse_csv_row

TEXT = st.text(max_size=12) | st.text(alphabet="\0\ud800\udc80a/.=:-", max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "annotations", "args", "attest", "cache-from", "cache-to", "context", "contexts", "dockerfile",
        "dockerfile-inline", "labels", "no-cache", "output", "platforms", "pull", "secret", "ssh", "tags",
        "target", "network", "call", "description", "matrix",
    ]
)  # fmt: skip
NAMES = st.sampled_from(["web", "base", "default", "tool"])
TARGETS = st.dictionaries(NAMES | TEXT, st.dictionaries(KEYS | TEXT, VALUES, max_size=4) | VALUES, max_size=4)
GROUPS = st.dictionaries(
    NAMES | TEXT, st.fixed_dictionaries({"targets": st.lists(NAMES | TEXT, max_size=4)}) | VALUES, max_size=4
)


def parse_or_none(document: Any) -> BakePlan | None:
    try:
        return parse_bake_plan(json.dumps(document), "x.hcl")
    except (BuilderError, UsageError):
        return None


@given(VALUES | st.fixed_dictionaries({"group": GROUPS, "target": TARGETS}))
def test_any_document(document: Any) -> None:
    plan = parse_or_none(document)
    if plan is not None:
        assert set(plan.requested) <= set(plan.targets)
        order = [target.name for target in plan.build_order]
        for target in plan.build_order:
            assert all(order.index(other) < order.index(target.name) for _, other in target.linked_contexts)


@given(TEXT)
def test_any_text(text: str) -> None:
    with pytest.raises((BuilderError, UsageError)):
        parse_bake_plan(text, "x.hcl")


@given(st.dictionaries(KEYS | TEXT, VALUES, max_size=4))
def test_key_is_read_or_rejected(raw: dict[str, Any]) -> None:
    try:
        target = BakeTargetReader("x").read_target("web", raw)
    except UsageError as error:
        message = error.message
    else:
        message = ""
    if message:
        assert any(f"{key} = " in message or f" {key}: " in message for key in [*raw, "dockerfile"])
        return
    keys = {key for key, value in raw.items() if value not in (None, [], {}, "", False)}
    assert keys <= {
        "annotations", "args", "attest", "cache-from", "cache-to", "context", "contexts", "dockerfile",
        "dockerfile-inline", "labels", "no-cache", "output", "platforms", "pull", "secret", "ssh", "tags",
        "target", "network", "call", "description",
    }  # fmt: skip
    assert target.request.platforms == ()


def escape_template(text: str) -> str:
    """Return a string as buildx prints it, so that its output is a bake file again."""
    return text.replace("${", "$${").replace("%{", "%%{")


@given(st.text(alphabet="$%{}ab\n", max_size=30))
def test_unescape_template(text: str) -> None:
    target = BakeTargetReader("x").read_target("web", {"args": {"A": escape_template(text)}})
    assert target.request.build_args == (f"A={text}",)


PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


@given(st.dictionaries(st.sampled_from(["ref", "mode", "scope"]), PLAIN, min_size=1))
def test_entry_is_one_csv_row(entry: dict[str, str]) -> None:
    raw = {"type": "registry", **entry}
    request = BakeTargetReader("x").read_target("web", {"cache-from": [raw], "attest": [raw]}).request
    assert parse_csv_row(request.attest[0], "attest") == [f"{name}={value}" for name, value in raw.items()]
    output = BakeTargetReader("x").read_target("web", {"output": [raw]}).request.outputs[0]
    if all(name == name.strip() for name in raw):
        assert OutputSpec.parse(str(output)) == output
    assert parse_csv_row(request.cache_from[0], "cache") == parse_csv_row(request.attest[0], "attest")
