"""Caches survive a round trip through CSV, and any other text is a usage error."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.build.cache import CacheSpec, check_cache, parse_cache_specs
from buildkit_tasks.build.secrets import check_secrets, check_ssh
from buildkit_tasks.errors import UsageError

NAMES = st.from_regex(r"[a-z][a-z0-9.-]{0,10}", fullmatch=True).filter(lambda name: name != "type")
SPECS = st.builds(
    CacheSpec,
    type=st.sampled_from(("local", "registry", "inline", "gha", "s3")),
    attributes=st.lists(
        st.tuples(NAMES, st.one_of(st.text(alphabet=",\"\n\r'=; a", max_size=8), st.text(max_size=20)))
    ).map(tuple),
)
ROWS = st.one_of(st.text(), st.text(alphabet='type=local,dst"\n@:/', max_size=40))


@given(SPECS)
def test_cache_round_trip(spec: CacheSpec) -> None:
    assert parse_cache_specs([str(spec)], "--cache-to") == (spec,)


@given(ROWS)
def test_any_text(text: str) -> None:
    with contextlib.suppress(UsageError):
        check_cache([text], [])
    with contextlib.suppress(UsageError):
        check_cache([], [text])
    with contextlib.suppress(UsageError):
        check_secrets([text], {})
    with contextlib.suppress(UsageError):
        check_ssh([text], {})
