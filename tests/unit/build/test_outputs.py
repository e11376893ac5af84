from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from buildkit_tasks.build.outputs import OutputSpec, check_outputs, make_archive_name
from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_an_output_is_read_as_buildx_reads_it(
    text: str, kind: str, attributes: tuple[tuple[str, str], ...]
) -> None:
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
def test_what_is_no_output_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="output"):
        OutputSpec.parse(text)


def test_an_output_is_written_as_buildx_takes_it() -> None:
    spec = OutputSpec(type="oci", attributes=(("dest", 'a,"b"\n.tar'), ("tar", "true")))
    assert str(spec) == 'type=oci,"dest=a,""b""\n.tar",tar=true'
    assert str(OutputSpec(type="docker")) == "type=docker"


def test_an_attribute_is_replaced_and_the_others_are_kept() -> None:
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
def test_what_an_output_does_is_told_from_its_attributes(
    text: str, *, is_file: bool, pushes: bool, loads: bool
) -> None:
    spec = OutputSpec.parse(text)
    assert (spec.is_file, spec.is_pushed, spec.is_loaded) == (is_file, pushes, loads)


def test_names_in_an_output_are_several() -> None:
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
def test_an_archive_is_named_after_the_tag_or_the_folder(tags: list[str], context: str, name: str) -> None:
    assert make_archive_name(tags, context) == name


def refused(text: str, *tags: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        check_outputs([OutputSpec.parse(text)], tags)
    return caught.value


def test_a_push_without_a_name_goes_nowhere() -> None:
    assert "needs the name of an image" in refused("type=registry").message
    assert "needs the name of an image" in refused("type=image,push=true").message
    check_outputs([OutputSpec.parse("type=registry")], ["a:1"])
    check_outputs([OutputSpec.parse("type=image,push=true,name=a")], [])


@pytest.mark.parametrize("text", ["-", "type=oci,dest=-", "type=tar,dest=-"])
def test_standard_output_is_kept_for_reports(text: str) -> None:
    assert "standard output" in refused(text).message


@pytest.mark.parametrize("kind", ["local", "tar", "oci"])
def test_an_output_without_a_place_gets_one_suggested(kind: str) -> None:
    error = refused(f"type={kind}")
    assert (error.hint or "").startswith(f"-o type={kind},dest=dist/")


@pytest.mark.parametrize("dest", ["/", "/tmp/..", "{home}", "{home}/x/.."])  # noqa: S108 - refused
def test_root_and_home_are_never_an_output(dest: str, tmp_path: Path) -> None:
    place = dest.format(home=tmp_path / "home")
    assert "name a folder inside it" in refused(f"type=local,dest={place}").message


def test_an_output_through_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "home")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "symbolic link" in refused("type=local,dest=link").message
    assert "symbolic link" in refused("type=oci,dest=dangling").message


def test_a_file_output_does_not_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    assert "is a folder" in refused("type=oci,dest=dist").message
    check_outputs([OutputSpec.parse("type=oci,dest=dist,tar=false"), OutputSpec.parse("dist")], [])
