"""The code blocks of the documentation, as commands and programs that a test can run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Accepted reasons for not running a snippet; it is still parsed.
REASONS = {
    "installs an environment",
    "needs several GPUs or machines",
    "needs a web server or a bucket",
}
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """A code block of a page."""

    page: Path
    line: int
    language: str
    code: str
    reason: str
    """The reason why it is not run, or ""."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    def commands(self) -> list[Command]:
        """Return its calls of `convnext`, including those by a launcher."""
        if self.language != "bash":
            return []
        lines = self.code.replace("\\\n", " ").splitlines()
        return [command for line in lines if (command := _command(line)) is not None]


@dataclass(frozen=True, kw_only=True)
class Command:
    """One call of `convnext`."""

    argv: tuple[str, ...]
    output: str
    """The file that takes standard output, or ""."""


def _command(line: str) -> Command | None:
    words = shlex.split(line, comments=True)
    starts = [i for i, word in enumerate(words) if Path(word).name == "convnext"]
    if not starts:
        return None
    words = words[starts[-1] + 1 :]
    output = ""
    if ">" in words:
        at = words.index(">")
        words, output = words[:at], words[at + 1]
    return Command(argv=tuple(words), output=output)


def snippets(page: Path) -> list[Snippet]:
    """Return the code blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Snippet(
            page=page,
            line=text[: match.start("language")].count("\n") + 1,
            language=match["language"],
            code=match["code"],
            reason=match["reason"] or "",
        )
        for match in _BLOCK.finditer(text)
    ]


def pages() -> list[Path]:
    """Return the pages whose snippets run; those in Korean have the same ones."""
    docs = sorted((ROOT / "docs").rglob("*.md"))
    return [ROOT / "README.md", *(page for page in docs if not page.name.endswith(".ko.md"))]
