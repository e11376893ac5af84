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
from tests.support.registry.fake import Reply, fake_registry

TWO_PLATFORMS = parse_platforms(["linux/amd64,linux/arm/v7"])
ONE_PLATFORM = TWO_PLATFORMS[1:]
DIGEST = "sha256:" + "0" * 64


@pytest.fixture(autouse=True)
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_caches(*folders: str) -> None:
    """Create what an import looks for in the folder of a local cache."""
    for folder in folders:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "index.json").touch()


def usage_error(cache_to: str = "", cache_from: str = "") -> UsageError:
    with pytest.raises(UsageError) as excinfo:
        check_cache([cache_to] if cache_to else [], [cache_from] if cache_from else [])
    assert excinfo.value.exit_code == 2
    return excinfo.value


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_parse_cache(text: str, expected: list[str]) -> None:
    assert [str(spec) for spec in parse_cache_specs([text], "--cache-to")] == expected


@pytest.mark.parametrize("text", ["dest=x", "type=,dest=x", "type=local,x", "", '"type=x', "type=local\nx=y"])
def test_parse_invalid_cache(text: str) -> None:
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
def test_one_platform_exports_to_scope(text: str, scope: str) -> None:
    assert cache_exports([text], ONE_PLATFORM) == (scope,)


def test_scopes_are_distinct() -> None:
    platforms = parse_platforms(["linux/arm/v7,linux/arm/v6,linux/arm64,linux/amd64,linux/386"])
    texts = ["type=local,dest=c", "x:c", "type=gha"]
    scopes = [scope for platform in platforms for scope in cache_exports(texts, [platform])]
    assert len(set(scopes)) == len(platforms) * len(texts)


@pytest.mark.parametrize("text", ["type=local,dest=c", "type=registry,ref=x:c", "type=gha,scope=web"])
def test_platforms_export_to_base(text: str) -> None:
    assert cache_exports([text], TWO_PLATFORMS) == (text,)


def test_import_base_and_scopes() -> None:
    both = ("type=registry,ref=x:c-linux-amd64", "type=registry,ref=x:c-linux-arm-v7")
    assert cache_imports(["x:c"], TWO_PLATFORMS) == ("type=registry,ref=x:c", *both)
    assert cache_imports(["x:c"], ONE_PLATFORM) == ("type=registry,ref=x:c", both[1])


def test_export_is_imported_later() -> None:
    make_caches("c/linux-arm-v7")
    for text, other in (("x:c", "x:c"), ("type=gha", "type=gha"), ("type=local,dest=c", "type=local,src=c")):
        (exported,) = cache_exports([text], ONE_PLATFORM)
        for platforms in (ONE_PLATFORM, TWO_PLATFORMS):
            assert exported.replace("dest=", "src=") in cache_imports([other], platforms)


def test_skip_empty_folders() -> None:
    make_caches("c/linux-arm-v7", "c/linux-s390x")
    assert cache_imports(["type=local,src=c"], TWO_PLATFORMS) == ("type=local,src=c/linux-arm-v7",)
    make_caches("c")
    assert cache_imports(["type=local,src=c"], TWO_PLATFORMS) == (
        "type=local,src=c",
        "type=local,src=c/linux-arm-v7",
    )


def test_keep_base_if_all_are_missing() -> None:
    assert cache_imports(["type=local,src=c"], TWO_PLATFORMS) == ("type=local,src=c",)


@pytest.mark.parametrize("tag", ["c", "c-linux-amd64", "c-linux-arm-v7"])
def test_skip_unknown_references(tag: str) -> None:
    with fake_registry() as server:
        existing = server.add_image(hello(), "team/cache", tag)
        assert cache_imports([f"{server.host}/team/cache:c"], TWO_PLATFORMS, probe_registries=True) == (
            f"type=registry,ref={existing}",
        )
        assert len(server.requests("GET */manifests/*")) == 3


def test_keep_unknown_base_reference() -> None:
    with fake_registry() as server:
        base = f"type=registry,ref={server.host}/team/cache:c"
        assert cache_imports([base], TWO_PLATFORMS, probe_registries=True) == (base,)


@pytest.mark.parametrize(
    "reply", [Reply(status=403), Reply(status=500), Reply(reset=True), Reply(silent=True)]
)
def test_registry_error_keeps_all(monkeypatch: pytest.MonkeyPatch, reply: Reply) -> None:
    monkeypatch.setattr(cache, "_PROBE_TIMEOUT", 0.5)
    with fake_registry() as server:
        server.answer_always("*", reply)
        texts = [f"{server.host}/team/cache:c", "type=gha"]
        assert cache_imports(texts, TWO_PLATFORMS, probe_registries=True) == cache_imports(
            texts, TWO_PLATFORMS
        )
    assert cache_imports(texts, TWO_PLATFORMS, probe_registries=True) == cache_imports(
        texts, TWO_PLATFORMS
    )  # connection refused


@pytest.mark.parametrize("text", [f"type=local,src=c,digest={DIGEST}", f"type=registry,ref=x@{DIGEST}"])
def test_digest_has_no_scopes(text: str) -> None:
    make_caches("c", "c/linux-arm-v7")
    assert cache_imports([text], TWO_PLATFORMS) == (text,)
    assert cache_exports([text], ONE_PLATFORM) == (text,)


def test_import_without_duplicates() -> None:
    assert cache_imports(["x:c", "type=registry,ref=x:c"], ONE_PLATFORM) == cache_imports(
        ["x:c"], ONE_PLATFORM
    )


@pytest.mark.parametrize("other", ["type=local,dest=d", "x:c", "type=gha"])
def test_local_with_other_cache(other: str) -> None:
    for texts in (("type=local,dest=c", other), (other, "type=local,dest=c", "type=inline")):
        with pytest.raises(UsageError, match="cannot be combined with another cache"):
            check_cache(texts, ())


def test_allowed_combinations() -> None:
    check_cache(("type=local,dest=c", "type=inline"), ("type=local,src=c", "type=local,src=d", "x:c"))
    check_cache(("x:c", "y:c", "type=gha", "type=inline"), ())


def test_scope_tag_too_long() -> None:
    cache_exports(["x:" + "c" * 115], ONE_PLATFORM)
    with pytest.raises(UsageError, match="more than 128 characters"):
        cache_exports(["x:" + "c" * 116], ONE_PLATFORM)


@pytest.mark.parametrize("text", ["type=registry", "type=registry,ref=", "type=local", "type=local,src=x"])
def test_export_without_dest_or_ref(text: str) -> None:
    assert "has no" in usage_error(cache_to=text).message


def test_import_without_src() -> None:
    assert usage_error(cache_from="type=local,dest=x").hint == "add src=FOLDER"


def test_import_of_inline_cache() -> None:
    assert usage_error(cache_from="type=inline").hint == "--cache-from type=registry,ref=REGISTRY/NAME:TAG"
    check_cache(["type=inline"], [])


@pytest.mark.parametrize("dest", ["/", "home", "link", "file"])
def test_unsafe_export_folder(work_dir: Path, dest: str) -> None:
    (work_dir / "link").symlink_to("home")
    (work_dir / "file").touch()
    assert dest in usage_error(cache_to=f"type=local,dest={dest}").message


def test_new_folder_is_accepted() -> None:
    check_cache(["type=local,dest=deep/er"], ["type=local,src=deep/er"])


@pytest.mark.parametrize("ref", ["example.org/Upper", "x:-", "https://example.org/x", "a b"])
def test_invalid_reference(ref: str) -> None:
    assert ref in usage_error(cache_to=f"type=registry,ref={ref}").message


@pytest.mark.parametrize(
    "text",
    [
        "keeper:hunter2@example.org/x",
        "type=registry,ref=keeper:hun/ter2@example.org/x",
        "hunter2@example.org/x",
    ],
)
def test_userinfo_in_reference(text: str) -> None:
    for error in (usage_error(cache_to=text), usage_error(cache_from=text)):
        assert "ter2" not in str(error)
        assert error.hint == "docker login example.org"


@pytest.mark.parametrize("name", ["secret_access_key", "access_key_id", "session_token", "token"])
def test_credential_attribute(name: str) -> None:
    error = usage_error(cache_to=f"type=s3,bucket=b,{name}=hunter2")
    assert name in error.message
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("kind", ["local,dest=c", "registry,ref=x", "inline", "gha"])
def test_docker_driver_types(kind: str) -> None:
    check_exporters([f"type={kind}"], [], "docker", "containerd")


@pytest.mark.parametrize("kind", ["s3,bucket=b", "azblob,name=x", "zz"])
def test_docker_driver_unknown_type(kind: str) -> None:
    for cache_to, cache_from in (([f"type={kind}"], []), ([], [f"type={kind}"])):
        with pytest.raises(UsageError) as excinfo:
            check_exporters(cache_to, cache_from, "docker", "containerd")
        assert excinfo.value.hint == "inv setup-builder --driver=docker-container --recreate"
        check_exporters(cache_to, cache_from, "docker-container", "graph")


def test_graph_store_exports_inline() -> None:
    check_exporters(["type=inline"], ["x:c", "type=local,src=c"], "docker", "graph")
    with pytest.raises(UsageError, match="graph store") as excinfo:
        check_exporters(["type=local,dest=c"], [], "docker", "graph")
    assert "--engine=private" in str(excinfo.value.hint)


@pytest.mark.parametrize("texts", [(["type=gha"], []), ([], ["type=gha,scope=x"])])
def test_gha_warning(texts: tuple[list[str], list[str]]) -> None:
    (note,) = cache_warnings(*texts, {})
    assert "ACTIONS_RUNTIME_TOKEN is not set" in note
    (note,) = cache_warnings(*texts, {"ACTIONS_RUNTIME_TOKEN": "x", "ACTIONS_RESULTS_URL": ""})
    assert "ACTIONS_RESULTS_URL is not set" in note
    for name in ("ACTIONS_RESULTS_URL", "ACTIONS_CACHE_URL"):
        assert cache_warnings(*texts, {"ACTIONS_RUNTIME_TOKEN": "x", name: "https://example.org"}) == ()


def test_no_warning_for_others() -> None:
    assert cache_warnings(["x:c"], ["type=local,src=c"], {}) == ()
    assert cache_warnings(["type=gha,url=https://example.org"], [], {"ACTIONS_RUNTIME_TOKEN": "x"}) == ()


def test_has_inline_cache() -> None:
    assert has_inline_cache(["x:c", "mode=min,type=inline"])
    assert not has_inline_cache(["x:inline", "type=local,dest=inline"])
