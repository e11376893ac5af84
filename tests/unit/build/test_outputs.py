from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from buildkit_tasks.build.outputs import OutputSpec, check_outputs, make_archive_name
from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


@pytest.mark.parametrize(
    ("text", "kind", "attributes"),
    [
        ("type=oci,dest=x.tar", "oci", (("dest", "x.tar"),)),
        ("dest=x.tar,type=oci", "oci", (("dest", "x.tar"),)),
        ("Type=local,DEST=Out", "local", (("dest", "Out"),)),
        ("out", "local", (("dest", "out"),)),
        ("-", "tar", (("dest", "-"),)),
        ('type=oci,"dest=a,b.tar"', "oci", (("dest", "a,b.tar"),)),
        ('type=oci,"dest=a""b.tar"', "oci", (("dest", 'a"b.tar'),)),
        ('type=oci,"dest=a\nb.tar"', "oci", (("dest", "a\nb.tar"),)),
        ("type=image,name=a=b,push=true", "image", (("name", "a=b"), ("push", "true"))),
        ("type=local,dest= out ", "local", (("dest", " out "),)),
        ("type=registry", "registry", ()),
    ],
)
def test_parse_output(text: str, kind: str, attributes: tuple[tuple[str, str], ...]) -> None:
    assert OutputSpec.parse(text) == OutputSpec(type=kind, attributes=attributes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "type=zip,dest=x",
        "dest=x,push",
        "type=oci,dest",
        "dest=x",
        'type=oci,"dest=x',
        "type=oci,dest=x\ny=z",
    ],
)
def test_parse_invalid_output(text: str) -> None:
    with pytest.raises(UsageError, match="output"):
        OutputSpec.parse(text)


def test_format_output() -> None:
    spec = OutputSpec(type="oci", attributes=(("dest", 'a,"b"\n.tar'), ("tar", "true")))
    assert str(spec) == 'type=oci,"dest=a,""b""\n.tar",tar=true'
    assert str(OutputSpec(type="docker")) == "type=docker"


def test_with_attribute() -> None:
    spec = OutputSpec.parse("type=oci,dest=a,tar=true").with_attribute("dest", "b")
    assert (spec.get("dest"), spec.get("tar"), spec.get("none")) == ("b", "true", "")


@pytest.mark.parametrize(
    ("text", "is_file", "pushes", "loads"),
    [
        ("type=oci,dest=x.tar", True, False, False),
        ("type=oci,dest=x,tar=false", False, False, False),
        ("type=tar,dest=x.tar", True, False, False),
        ("type=docker,dest=x.tar", True, False, False),
        ("type=docker", False, False, True),
        ("type=local,dest=x", False, False, False),
        ("type=registry", False, True, False),
        ("type=image,push=true", False, True, False),
        ("type=image,push=1", False, True, False),
        ("type=image,push=false", False, False, False),
        ("type=image", False, False, False),
    ],
)
def test_output_predicates(text: str, *, is_file: bool, pushes: bool, loads: bool) -> None:
    spec = OutputSpec.parse(text)
    assert (spec.is_file, spec.is_pushed, spec.is_loaded) == (is_file, pushes, loads)


def test_output_names() -> None:
    assert OutputSpec.parse('type=image,"name=a:1,b:2"').names == ("a:1", "b:2")
    assert OutputSpec.parse("type=image").names == ()


@pytest.mark.parametrize(
    ("tags", "context", "name"),
    [
        (["registry.example:5000/team/hello:0.1"], ".", "hello-0.1.tar"),
        (["hello"], ".", "hello.tar"),
        ([], "/x/My App", "My-App.tar"),
        ([], "/", "image.tar"),
        ([], "https://example.org/me/repo.git#main", "repo.git-main.tar"),
    ],
)
def test_archive_name(tags: list[str], context: str, name: str) -> None:
    assert make_archive_name(tags, context) == name


def usage_error(text: str, *tags: str) -> UsageError:
    with pytest.raises(UsageError) as excinfo:
        check_outputs([OutputSpec.parse(text)], tags)
    return excinfo.value


def test_push_without_name() -> None:
    assert str(usage_error("type=registry")) == "a push needs a tag\n  try: -t REGISTRY/NAME:TAG"
    message = usage_error("type=image,push=true").message
    assert message == "--output=type=image,push=true needs a tag"
    with pytest.raises(UsageError, match="--split needs a tag"):
        check_outputs([OutputSpec(type="registry")], (), is_split=True)
    check_outputs([OutputSpec.parse("type=registry")], ["a:1"])
    check_outputs([OutputSpec.parse("type=image,push=true,name=a")], [])


def test_load_without_name() -> None:
    assert str(usage_error("type=docker")) == "--output=type=docker needs a tag\n  try: -t NAME:TAG"
    check_outputs([OutputSpec.parse("type=docker,name=a")], [])
    check_outputs([OutputSpec.parse("type=docker")], ["a:1"])
    check_outputs([OutputSpec.parse("type=image")], [])


@pytest.mark.parametrize("text", ["-", "type=oci,dest=-", "type=tar,dest=-"])
def test_stdout_is_refused(text: str) -> None:
    assert "standard output" in usage_error(text).message


@pytest.mark.parametrize("kind", ["local", "tar", "oci"])
def test_output_without_dest(kind: str) -> None:
    error = usage_error(f"type={kind}")
    assert error.hint == f"-o type={kind},dest=dist/out"


def test_dest_is_added_to_output() -> None:
    assert usage_error("type=oci,tar=false").hint == "-o type=oci,tar=false,dest=dist/out"
    hint = usage_error('type=oci,dest=,"name=a:1,b:1"').hint
    assert hint == "-o 'type=oci,dest=dist/out,\"name=a:1,b:1\"'"


@pytest.mark.parametrize("dest", ["/", "/tmp/..", "{home}", "{home}/x/.."])  # noqa: S108 - refused
def test_root_and_home_are_refused(dest: str, tmp_path: Path) -> None:
    path = dest.format(home=tmp_path / "home")
    assert "name a folder inside it" in usage_error(f"type=local,dest={path}").message


def test_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "home")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "symbolic link" in usage_error("type=local,dest=link").message
    assert "symbolic link" in usage_error("type=oci,dest=dangling").message


def test_file_over_folder(tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    assert "is a folder" in usage_error("type=oci,dest=dist").message
    check_outputs([OutputSpec.parse("type=oci,dest=dist,tar=false"), OutputSpec.parse("dist")], [])


@pytest.mark.parametrize("kind", ["oci", "tar", "local"])
def test_unwritable_dest(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    error = usage_error(f"type={kind},dest={tmp_path}/file/app.tar")
    assert error.message == f"{tmp_path}/file/app.tar cannot be written: {tmp_path}/file is not a directory"
    assert error.hint == f'--output=type={kind},dest="$(mktemp -d)"/app.tar'
