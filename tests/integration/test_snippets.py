"""Execute or check every code block of the pages, and every command in their text.

``RULES`` has a rule for each language; a block of another language fails. What needs an engine, a registry
or a cluster is checked as :mod:`tests.support.documented_commands` describes.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from invoke.collection import Collection

import buildkit_tasks as bt
from buildkit_tasks import pytest_plugin
from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.tasks import ns
from tests.conftest import ROOT
from tests.support import report_samples
from tests.support.documented_commands import CommandChecker, CommandError
from tests.support.environment import NO_OTHER_PLUGINS, minimal_env
from tests.support.snippets import (
    PROMPT,
    Block,
    ShellCommand,
    blocks,
    inline_code,
    pages,
    shell_commands,
    shell_script,
)
from tests.support.workflows import parse_yaml

BLOCKS = [block for page in pages() for block in blocks(page)]
CODE = sorted({code for page in pages() if page.parent.name != "changelog.d" for code in inline_code(page)})
PROGRAMS = ("buildkit-tasks", "inv", "nox", "pip", "pytest", "python", "python3")
COMMANDS = [code for code in CODE if re.match(rf"(?:{'|'.join(PROGRAMS)}) ", code)]
SCHEMAS = ROOT / "buildkit_tasks/schemas"
MENTIONS = [code for code in CODE if code.partition(" ")[0] in ns.task_names]


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandChecker]:
    """A repository in which commands are checked, as the current directory."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield CommandChecker(tmp_path_factory.mktemp("repo"), monkeypatch)


def check_shell(block: Block, checker: CommandChecker) -> None:
    script = shell_script(block.text)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    commands = list(shell_commands(script))
    assert commands
    for command in commands:
        checker.check(command, several_images="--image " in script)


def check_text(block: Block, checker: CommandChecker) -> None:
    """Check the commands of a session with prompts; other text is output."""
    if any(line.startswith(PROMPT) for line in block.text.splitlines()):
        check_shell(block, checker)


def check_python(block: Block, checker: CommandChecker) -> None:
    signature = re.fullmatch(r"(\w+)(\(.*\))\s*", block.text)
    if signature:
        check_signature(*signature.groups())
    elif "arch_matrix(" in block.text:
        check_noxfile(block, checker)
    elif re.search(r"^def test_", block.text, re.MULTILINE):
        check_tests(block, checker)
    else:
        check_program(block, checker)


def check_signature(name: str, parameters: str) -> None:
    """Compare a documented signature with the one of the plugin's fixture."""
    tree = ast.parse(inspect.getsource(pytest_plugin))
    (fixture,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    (function,) = (node for node in fixture.body if isinstance(node, ast.FunctionDef))
    for argument in (*function.args.args, *function.args.kwonlyargs):
        argument.annotation = None
    (documented,) = ast.parse(f"def {name}{parameters}: pass").body
    assert isinstance(documented, ast.FunctionDef)
    assert ast.unparse(function.args) == ast.unparse(documented.args)


def check_noxfile(block: Block, checker: CommandChecker) -> None:
    (checker.folder / "snippet_nox.py").write_text(block.text, encoding="utf-8")
    argv = [sys.executable, "-m", "nox", "-f", "snippet_nox.py", "--list", "--json"]
    sessions = json.loads(subprocess.check_output(argv, env=minimal_env(HOME=str(checker.folder))))
    named = re.findall(r'"(linux/[^"]+)"', block.text) or ["linux/amd64", "linux/arm64"]
    assert [session["call_spec"]["platform"] for session in sessions] == named


# Every run succeeds and prints what the examples expect.
PASSING_RUNS = """
import dataclasses
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.report.model import Outcome, RunReport, RunResult

def run_image(self, image, platforms=()):
    results = [
        RunResult(platform=str(each), outcome=Outcome.PASSED, stdout=f"[{each.goarch}]") for each in platforms
    ]
    return RunReport(subject=image, results=tuple(results))

Pipeline.run_image = run_image
Pipeline.with_settings = lambda self, settings: dataclasses.replace(self, settings=settings)
"""


def check_tests(block: Block, checker: CommandChecker) -> None:
    """Run the tests with the plugin on images that exist; compare with the output that the page shows."""
    folder = checker.folder / f"{block.page.replace('/', '-')}-{block.line}"
    folder.mkdir()
    transcript = transcript_after(block)
    name = re.findall(r"^(test_\w+\.py)::", transcript, re.MULTILINE)[:1] or ["test_snippet.py"]
    files = {"conftest.py": PASSING_RUNS, name[0]: f"import pytest\n{block.text}"}
    images = ["--arch-image=oci-archive:../image.tar"]
    if "mark.images" in block.text:
        tables = "platforms = ['linux/amd64', 'linux/arm64']\n[[tool.buildkit-tasks.image]]\nname = 'web'\n"
        files["pyproject.toml"] = f"[tool.buildkit-tasks]\n{tables}"
        images = ["--arch-image=web=oci-archive:../image.tar"]
    else:
        files["pyproject.toml"] = "[tool.buildkit-tasks]\nplatforms = ['linux/arm64', 'linux/arm/v7']\n"
    for path, text in files.items():
        (folder / path).write_text(text, encoding="utf-8")
    options = ("-v", "-p", "no:cacheprovider", "--strict-markers", *NO_OTHER_PLUGINS, *images)
    argv = [sys.executable, "-m", "pytest", *options]
    env = minimal_env(HOME=str(folder))
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in transcript.splitlines():
        assert line.startswith(PROMPT) or line in done.stdout


def transcript_after(block: Block) -> str:
    """Return the shell session that follows a block on its page, if there is one."""
    following = [each for each in BLOCKS if each.page == block.page and each.line > block.line]
    return following[0].text if following and following[0].text.startswith(PROMPT) else ""


def check_program(block: Block, checker: CommandChecker) -> None:
    """Execute the code under a pipeline whose steps return samples; look at the tasks that it defines."""
    namespace: dict[str, Any] = {"bt": bt}
    with checker.monkeypatch.context() as patch:
        patch.chdir(single_image_folder(checker))
        samples = {
            "build": report_samples.build(),
            "verify_image": report_samples.verify(),
            "run_image": report_samples.run(),
            "run_matrix": (report_samples.matrix(), None),
        }
        for name, sample in samples.items():
            # Bound to the real signature: a wrong keyword is a TypeError.
            patch.setattr(Pipeline, name, returning(sample, getattr(Pipeline, name)))
        exec(compile(block.text, str(block), "exec"), namespace)  # noqa: S102 - a page of this repository
    assert len(namespace) > 1
    if "ns" in namespace:
        assert isinstance(namespace["ns"], Collection)


def single_image_folder(checker: CommandChecker) -> Path:
    folder = checker.folder / "single"
    folder.mkdir(exist_ok=True)
    for name in ("Dockerfile", "pyproject.toml"):
        (folder / name).touch()
    return folder


def returning(sample: object, function: Callable[..., object]) -> Callable[..., object]:
    def call(*args: Any, **kwargs: Any) -> object:
        inspect.signature(function).bind(*args, **kwargs)
        return sample

    return call


def check_toml(block: Block, checker: CommandChecker) -> None:
    document = tomllib.loads(block.text)
    if schema := re.match(r"#:schema .*/site-packages/(.*)", block.text):
        assert (ROOT / schema[1]).is_file()
    else:
        assert document["tool"].keys() == {"buildkit-tasks"}
        folder = checker.folder / "toml"
        folder.mkdir(exist_ok=True)
        (folder / "pyproject.toml").write_text(block.text, encoding="utf-8")
        settings = load_settings(environ={}, folder=folder)
        parse_platforms(settings.platforms)
        assert settings.origins


def check_yaml(block: Block, checker: CommandChecker) -> None:
    """Check a use of this repository's action, or settings in a file of Invoke."""
    document = parse_yaml(block.text)
    if isinstance(document, list):
        (step,) = document
        action = parse_yaml((ROOT / "action.yml").read_text(encoding="utf-8"))
        assert step.get("with", {}).keys() <= action["inputs"].keys()
    else:
        (settings,) = (document.pop("buildkit"),)
        assert not document
        assert load_settings(invoke=settings, environ={}, folder=checker.folder).origins


def check_json(block: Block, checker: CommandChecker) -> None:
    document = json.loads(block.text)
    if isinstance(document, list):
        (example,) = document
        argv = [sys.executable, "-m", "nox", "--list", "--json", "-s", example["session"]]
        (session,) = json.loads(subprocess.check_output(argv, env=minimal_env(HOME=str(checker.folder))))
        assert session | example == session
    elif "evenBetterToml.schema.associations" in document:
        ((pattern, url),) = document["evenBetterToml.schema.associations"].items()
        assert re.fullmatch(pattern, "/repo/pyproject.toml")
        assert (ROOT / url.removeprefix("file:///PATH/")).is_file()
    else:
        check_document(document, block)


def check_document(document: Any, block: Block) -> None:
    """Check that the keys of an abbreviated document are those of a report, or in a table of the page."""
    schemas = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(SCHEMAS.glob("*.json"))]
    keys = list(key_paths(document))
    text = (ROOT / block.page).read_text(encoding="utf-8").replace("[]", ".[]")
    rows = re.findall(r"^\| `([\w.\[\]]+)` \|", text, re.MULTILINE)
    if not any(set(keys) <= set(schema_paths(schema, schema)) for schema in schemas):
        assert [key for key in keys if not any(is_within(key, row) for row in rows)] == []


def is_within(key: str, row: str) -> bool:
    """Return True if a key is documented by a row for it, for one around it or for one in it."""
    return all(one == other for one, other in zip(key.split("."), row.split("."), strict=False))


def key_paths(document: Any, parent: str = "") -> Iterator[str]:
    """Yield the keys of a document and of the documents in it: ``ok``, ``images``, ``images.[].name``."""
    if isinstance(document, list):
        for each in document:
            yield from key_paths(each, f"{parent}[].")
    if isinstance(document, dict):
        for key, value in document.items():
            yield f"{parent}{key}"
            yield from key_paths(value, f"{parent}{key}.")


def schema_paths(schema: Any, root: Any, parent: str = "") -> Iterator[str]:
    """Yield the keys that a JSON schema has, as :func:`key_paths` names them."""
    if reference := schema.get("$ref"):
        schema = root["$defs"][reference.rpartition("/")[2]]
    if "items" in schema:
        yield from schema_paths(schema["items"], root, f"{parent}[].")
    for key, value in schema.get("properties", {}).items():
        yield f"{parent}{key}"
        yield from schema_paths(value, root, f"{parent}{key}.")


def check_autodoc(block: Block, _: CommandChecker) -> None:
    for name in re.findall(r"^\.\. auto\w+:: (\w+)", block.text, re.MULTILINE):
        assert name in bt.__all__


def check_literalinclude(block: Block, _: CommandChecker) -> None:
    """The file is one whose commands :mod:`tests.unit.test_pipelines` checks."""
    path = (ROOT / block.page).parent / block.argument
    assert path.resolve() in (ROOT / "examples/ci").resolve().glob("*.yml")


def check_toctree(block: Block, _: CommandChecker) -> None:
    names = [line for line in block.text.splitlines() if line and not line.startswith(":")]
    assert names
    assert [name for name in names if not (ROOT / f"docs/{name}.md").is_file()] == []


def check_markdown(block: Block, _: CommandChecker) -> None:
    """An example of a text that somebody writes."""
    assert block.page == "changelog.d/README.md"


RULES: dict[str, Callable[[Block, CommandChecker], None]] = {
    "console": check_shell,
    "sh": check_shell,
    "text": check_text,
    "python": check_python,
    "toml": check_toml,
    "yaml": check_yaml,
    "json": check_json,
    "markdown": check_markdown,
    "{eval-rst}": check_autodoc,
    "{literalinclude}": check_literalinclude,
    "{toctree}": check_toctree,
}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block(block: Block, checker: CommandChecker) -> None:
    assert block.language in RULES, f"{block}: no rule covers a block of {block.language or 'no language'}"
    RULES[block.language](block, checker)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_in_text(command: str, checker: CommandChecker) -> None:
    for each in shell_commands(command):
        checker.check(each)


@pytest.mark.parametrize("code", MENTIONS)
def test_task_in_text(code: str, checker: CommandChecker) -> None:
    for each in shell_commands(code):
        checker.check_mention(each)


def make_block(language: str, text: str) -> Block:
    return Block(page="docs/bake.md", line=1, language=language, argument="", text=text)


BROKEN = [
    pytest.param("console", "inv build-multiarch --platfrom linux/arm64\n", id="option"),
    pytest.param("console", "inv build-multiarch --platform linux/arm46\n", id="platform"),
    pytest.param("console", "inv build-multiarch --push\n", id="missing-tag"),
    pytest.param("console", "inv verify-arch oci-archive:nowhere.tar\n", id="file"),
    pytest.param("console", "inv verify-arch docker://EXAMPLE.org/Team\n", id="reference"),
    pytest.param("console", "inv run-emulated --runner podman\n", id="choice"),
    pytest.param("console", "inv build-all | cat\n", id="task"),
    pytest.param("console", "nox -s arch_matrics\n", id="session"),
    pytest.param("console", "nox -s arch_matrix -- -j 4 -k hello -x\n", id="no-test-selected"),
    pytest.param("console", "nox -s arch_matrix -- --cpu=floor --nonsense\n", id="pytest-option"),
    pytest.param("console", "pip install buildkit-tasks\n", id="unreleased"),
    pytest.param("console", "python docs/table.py\n", id="script"),
    pytest.param("console", "frobnicate\n", id="program"),
    pytest.param("console", "$ inv doctor --platform\nall is well\n", id="after-prompt"),
    pytest.param("text", "$ inv doctor --platform\nall is well\n", id="session-in-text"),
    pytest.param("python", "bt.run(commnad='x')\n", id="keyword"),
    pytest.param("python", "def test_it(run_on_platform):\n    assert 0\n", id="failing-test"),
    pytest.param("python", "run_on_platform(command)\n", id="signature"),
    pytest.param("toml", "[tool.buildkit-tasks]\nplatfroms = []\n", id="key"),
    pytest.param("yaml", "buildkit:\n  runner: podman\n", id="invoke-value"),
    pytest.param("yaml", "- uses: x\n  with: {platfroms: x}\n", id="input"),
    pytest.param("json", "{'ok': 1}\n", id="not-json"),
    pytest.param("json", '{"ok": true, "image": []}\n', id="json-key"),
]


@pytest.mark.parametrize(("language", "text"), BROKEN)
def test_broken_block(language: str, text: str, checker: CommandChecker) -> None:
    errors = (AssertionError, CommandError, TypeError, ValueError, bt.BuildkitTasksError)
    with pytest.raises((*errors, subprocess.CalledProcessError)):
        RULES[language](make_block(language, text), checker)


def test_unknown_option_in_text(checker: CommandChecker) -> None:
    with pytest.raises(CommandError, match="doctor has no option --nonsense"):
        checker.check_mention(ShellCommand(argv=("doctor", "--nonsense")))


def test_blocks_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.snippets.ROOT", tmp_path)
    page = tmp_path / "x.md"
    page.write_text(
        "a `b c`\n\n- d\n\n  ```sh\n  e\n    f\n  ```\n\n~~~~python x\n```\n~~~~\n", encoding="utf-8"
    )
    first, second = blocks(page)
    assert (first.language, first.text, first.line) == ("sh", "e\n  f\n", 5)
    assert (second.language, second.argument, second.text) == ("python", "x", "```\n")
    assert list(inline_code(page)) == ["b c"]


def test_shell_commands() -> None:
    script = "A=1 B='2 3' inv x --y='z w' > out # c\n(cd a && go b \\\n  c) | cat; d=$(e f)\n"
    commands = list(shell_commands(script))
    assert [command.argv for command in commands] == [
        ("inv", "x", "--y=z w"), ("cd", "a"), ("go", "b", "c"), ("cat",), ("e", "f"),
    ]  # fmt: skip
    assert commands[0].env == (("A", "1"), ("B", "2 3"))


def test_block_without_rule(checker: CommandChecker) -> None:
    with pytest.raises(AssertionError, match=r"docs/bake\.md:1: no rule covers a block of ruby"):
        test_block(make_block("ruby", "puts 1\n"), checker)
