from __future__ import annotations

from pathlib import Path

import pytest

from buildkit_tasks.build import cache
from buildkit_tasks.build.cache import (
    cache_exports,
    cache_imports,
    cache_warnings,
    check_cache,
    check_exporters,
    has_inline_cache,
    parse_cache_specs,
)
from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import parse_platforms
from tests.support.oci import hello
from tests.support.registry.hostile import Reply, hostile

TWO = parse_platforms(["linux/amd64,linux/arm/v7"])
ONE = TWO[1:]
DIGEST = "sha256:" + "0" * 64


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def held(*folders: str) -> None:
    """Put a cache into each folder, as far as an import looks."""
    for folder in folders:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "index.json").touch()


def refused(cache_to: str = "", cache_from: str = "") -> UsageError:
    with pytest.raises(UsageError) as caught:
        check_cache([cache_to] if cache_to else [], [cache_from] if cache_from else [])
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("type=local,dest=x", ["type=local,dest=x"]),
        ("dest=x,TYPE=local,Mode=max", ["type=local,dest=x,mode=max"]),
        ('type=local,"dest=a,b"', ['type=local,"dest=a,b"']),
        ("type=inline", ["type=inline"]),
        ("example.org/x:c", ["type=registry,ref=example.org/x:c"]),
        ("a,b:1", ["type=registry,ref=a", "type=registry,ref=b:1"]),
        ("type=s3,region=eu,bucket=b", ["type=s3,region=eu,bucket=b"]),
    ],
)
def test_a_cache_is_read_as_buildx_reads_it(text: str, read: list[str]) -> None:
    assert [str(spec) for spec in parse_cache_specs([text], "--cache-to")] == read


@pytest.mark.parametrize("text", ["dest=x", "type=,dest=x", "type=local,x", "", '"type=x', "type=local\nx=y"])
def test_what_is_neither_a_row_nor_a_reference_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_cache_specs([text], "--cache-to")


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("type=local,dest=c,mode=max", "type=local,dest=c/linux-arm-v7,mode=max"),
        ("type=registry,ref=example.org:5000/x", "type=registry,ref=example.org:5000/x:latest-linux-arm-v7"),
        ("type=registry,ref=x:c,mode=max", "type=registry,ref=x:c-linux-arm-v7,mode=max"),
        ("x:c", "type=registry,ref=x:c-linux-arm-v7"),
        ("type=gha,mode=max", "type=gha,mode=max,scope=buildkit-linux-arm-v7"),
        ("type=gha,scope=web", "type=gha,scope=web-linux-arm-v7"),
        ("type=inline", "type=inline"),
        ("type=s3,bucket=b", "type=s3,bucket=b"),
    ],
)
def test_a_build_of_one_platform_exports_to_a_scope_of_its_own(text: str, scope: str) -> None:
    assert cache_exports([text], ONE) == (scope,)


def test_no_two_platforms_share_a_scope() -> None:
    platforms = parse_platforms(["linux/arm/v7,linux/arm/v6,linux/arm64,linux/amd64,linux/386"])
    texts = ["type=local,dest=c", "x:c", "type=gha"]
    scopes = [scope for platform in platforms for scope in cache_exports(texts, [platform])]
    assert len(set(scopes)) == len(platforms) * len(texts)


@pytest.mark.parametrize("text", ["type=local,dest=c", "type=registry,ref=x:c", "type=gha,scope=web"])
def test_one_solve_of_several_platforms_exports_once_to_the_base(text: str) -> None:
    assert cache_exports([text], TWO) == (text,)


def test_a_build_imports_from_the_base_and_from_the_scope_of_each_of_its_platforms() -> None:
    both = ("type=registry,ref=x:c-linux-amd64", "type=registry,ref=x:c-linux-arm-v7")
    assert cache_imports(["x:c"], TWO) == ("type=registry,ref=x:c", *both)
    assert cache_imports(["x:c"], ONE) == ("type=registry,ref=x:c", both[1])


def test_what_is_exported_by_one_platforms_build_is_imported_by_a_later_one() -> None:
    held("c/linux-arm-v7")
    for text, other in (("x:c", "x:c"), ("type=gha", "type=gha"), ("type=local,dest=c", "type=local,src=c")):
        (exported,) = cache_exports([text], ONE)
        for platforms in (ONE, TWO):
            assert exported.replace("dest=", "src=") in cache_imports([other], platforms)


def test_of_local_folders_only_those_with_a_cache_are_imported() -> None:
    held("c/linux-arm-v7", "c/linux-s390x")
    assert cache_imports(["type=local,src=c"], TWO) == ("type=local,src=c/linux-arm-v7",)
    held("c")
    assert cache_imports(["type=local,src=c"], TWO) == ("type=local,src=c", "type=local,src=c/linux-arm-v7")


def test_where_no_folder_holds_a_cache_the_base_is_left_for_buildx_to_name() -> None:
    assert cache_imports(["type=local,src=c"], TWO) == ("type=local,src=c",)


@pytest.mark.parametrize("tag", ["c", "c-linux-amd64", "c-linux-arm-v7"])
def test_of_a_registry_only_what_it_has_is_imported(tag: str) -> None:
    with hostile() as server:
        there = server.add_image(hello(), "team/cache", tag)
        assert cache_imports([f"{server.host}/team/cache:c"], TWO, probe_registries=True) == (
            f"type=registry,ref={there}",
        )
        assert len(server.requests("GET */manifests/*")) == 3


def test_where_a_registry_has_none_the_base_is_left_for_buildkit_to_name() -> None:
    with hostile() as server:
        base = f"type=registry,ref={server.host}/team/cache:c"
        assert cache_imports([base], TWO, probe_registries=True) == (base,)


@pytest.mark.parametrize(
    "reply", [Reply(status=403), Reply(status=500), Reply(reset=True), Reply(silent=True)]
)
def test_what_a_registry_does_not_tell_us_is_buildkits_to_find(
    monkeypatch: pytest.MonkeyPatch, reply: Reply
) -> None:
    monkeypatch.setattr(cache, "_PROBE_TIMEOUT", 0.5)
    with hostile() as server:
        server.always("*", reply)
        texts = [f"{server.host}/team/cache:c", "type=gha"]
        assert cache_imports(texts, TWO, probe_registries=True) == cache_imports(texts, TWO)
    assert cache_imports(texts, TWO, probe_registries=True) == cache_imports(
        texts, TWO
    )  # nobody listens any more


@pytest.mark.parametrize("text", [f"type=local,src=c,digest={DIGEST}", f"type=registry,ref=x@{DIGEST}"])
def test_what_is_named_by_its_digest_has_no_scopes(text: str) -> None:
    held("c", "c/linux-arm-v7")
    assert cache_imports([text], TWO) == (text,)
    assert cache_exports([text], ONE) == (text,)


def test_a_cache_that_is_named_twice_is_imported_once() -> None:
    assert cache_imports(["x:c", "type=registry,ref=x:c"], ONE) == cache_imports(["x:c"], ONE)


@pytest.mark.parametrize("other", ["type=local,dest=d", "x:c", "type=gha"])
def test_a_local_cache_beside_another_is_refused(other: str) -> None:
    for texts in (("type=local,dest=c", other), (other, "type=local,dest=c", "type=inline")):
        with pytest.raises(UsageError, match="cannot be combined with another cache"):
            check_cache(texts, ())


def test_caches_that_buildx_keeps_apart_may_stand_together() -> None:
    check_cache(("type=local,dest=c", "type=inline"), ("type=local,src=c", "type=local,src=d", "x:c"))
    check_cache(("x:c", "y:c", "type=gha", "type=inline"), ())


def test_a_tag_that_a_scope_makes_too_long_is_refused() -> None:
    cache_exports(["x:" + "c" * 115], ONE)
    with pytest.raises(UsageError, match="more than 128 characters"):
        cache_exports(["x:" + "c" * 116], ONE)


@pytest.mark.parametrize("text", ["type=registry", "type=registry,ref=", "type=local", "type=local,src=x"])
def test_a_cache_that_goes_nowhere_is_refused(text: str) -> None:
    assert "has no" in refused(cache_to=text).message


def test_an_import_needs_its_place_too() -> None:
    assert refused(cache_from="type=local,dest=x").hint == "add src=FOLDER"


def test_an_inline_cache_is_imported_from_its_image() -> None:
    assert refused(cache_from="type=inline").hint == "--cache-from type=registry,ref=REGISTRY/NAME:TAG"
    check_cache(["type=inline"], [])


@pytest.mark.parametrize("place", ["/", "home", "link", "file"])
def test_a_place_that_would_be_spoilt_is_refused(here: Path, place: str) -> None:
    (here / "link").symlink_to("home")
    (here / "file").touch()
    assert place in refused(cache_to=f"type=local,dest={place}").message


def test_a_folder_that_is_not_there_yet_is_taken() -> None:
    check_cache(["type=local,dest=deep/er"], ["type=local,src=deep/er"])


@pytest.mark.parametrize("ref", ["example.org/Upper", "x:-", "https://example.org/x", "a b"])
def test_what_is_no_reference_is_refused(ref: str) -> None:
    assert ref in refused(cache_to=f"type=registry,ref={ref}").message


@pytest.mark.parametrize(
    "text",
    [
        "keeper:hunter2@example.org/x",
        "type=registry,ref=keeper:hun/ter2@example.org/x",
        "hunter2@example.org/x",
    ],
)
def test_a_users_name_in_a_reference_is_refused_and_not_repeated(text: str) -> None:
    for error in (refused(cache_to=text), refused(cache_from=text)):
        assert "ter2" not in str(error)
        assert error.hint == "docker login example.org"


@pytest.mark.parametrize("name", ["secret_access_key", "access_key_id", "session_token", "token"])
def test_a_credential_among_the_attributes_is_refused_and_not_repeated(name: str) -> None:
    error = refused(cache_to=f"type=s3,bucket=b,{name}=hunter2")
    assert name in error.message
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("kind", ["local,dest=c", "registry,ref=x", "inline", "gha"])
def test_the_engines_own_builder_with_the_containerd_store_exports_four_kinds(kind: str) -> None:
    check_exporters([f"type={kind}"], [], "docker", "containerd")


@pytest.mark.parametrize("kind", ["s3,bucket=b", "azblob,name=x", "zz"])
def test_what_the_engines_own_builder_does_not_know_is_refused(kind: str) -> None:
    for cache_to, cache_from in (([f"type={kind}"], []), ([], [f"type={kind}"])):
        with pytest.raises(UsageError) as caught:
            check_exporters(cache_to, cache_from, "docker", "containerd")
        assert caught.value.hint == "--driver=docker-container"
        check_exporters(cache_to, cache_from, "docker-container", "graph")


def test_the_graph_store_exports_inline_caches_only_and_imports_the_others() -> None:
    check_exporters(["type=inline"], ["x:c", "type=local,src=c"], "docker", "graph")
    with pytest.raises(UsageError, match="graph store") as caught:
        check_exporters(["type=local,dest=c"], [], "docker", "graph")
    assert "--engine=private" in str(caught.value.hint)


@pytest.mark.parametrize("texts", [(["type=gha"], []), ([], ["type=gha,scope=x"])])
def test_a_cache_of_githubs_outside_its_runners_is_told(texts: tuple[list[str], list[str]]) -> None:
    (note,) = cache_warnings(*texts, {})
    assert "ACTIONS_RUNTIME_TOKEN is not set" in note
    (note,) = cache_warnings(*texts, {"ACTIONS_RUNTIME_TOKEN": "x", "ACTIONS_RESULTS_URL": ""})
    assert "ACTIONS_RESULTS_URL is not set" in note
    for name in ("ACTIONS_RESULTS_URL", "ACTIONS_CACHE_URL"):
        assert cache_warnings(*texts, {"ACTIONS_RUNTIME_TOKEN": "x", name: "https://example.org"}) == ()


def test_nothing_is_told_of_other_caches() -> None:
    assert cache_warnings(["x:c"], ["type=local,src=c"], {}) == ()
    assert cache_warnings(["type=gha,url=https://example.org"], [], {"ACTIONS_RUNTIME_TOKEN": "x"}) == ()


def test_inline_is_found_among_others() -> None:
    assert has_inline_cache(["x:c", "mode=min,type=inline"])
    assert not has_inline_cache(["x:inline", "type=local,dest=inline"])
