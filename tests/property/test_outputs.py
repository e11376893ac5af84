"""Outputs survive a round trip through CSV, and any other text is a usage error."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.build.outputs import OUTPUT_TYPES, OutputSpec
from buildkit_tasks.errors import UsageError

NAMES = st.from_regex(r"[a-z][a-z0-9.-]{0,10}", fullmatch=True).filter(lambda name: name != "type")
SPECS = st.builds(
    OutputSpec,
    type=st.sampled_from(OUTPUT_TYPES),
    attributes=st.lists(
        st.tuples(NAMES, st.one_of(st.text(alphabet=",\"\n\r'=; a", max_size=8), st.text(max_size=20)))
    ).map(tuple),
)


@given(SPECS)
def test_output_round_trip(spec: OutputSpec) -> None:
    assert OutputSpec.parse(str(spec)) == spec


@given(st.one_of(st.text(), st.text(alphabet='type=oci,dst"\n', max_size=40)))
def test_any_text(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert OutputSpec.parse(text).type in OUTPUT_TYPES
