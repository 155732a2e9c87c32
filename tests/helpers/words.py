"""Phrases that the project does not use, and where prose is found in its files.

Run this file to count them, with --update to write the list of files that are still to be cleaned.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEFT = ROOT / "tests" / "reference" / "words_left.txt"

_STEMS = (
    "anonym|author|binar|categor|central|character|custom|discret|emphas|equal|factor|final|formal|"
    "general|initial|linear|local|maxim|memor|minim|modern|normal|optim|organ|parallel|penal|"
    "priorit|quant|random|real|recogn|regular|serial|special|stabil|standard|summar|synchron|"
    "token|util|vector|visual"
)
# A pattern, and what to write instead. Case matters only where a sentence must begin.
PHRASES = {
    r"com(e|es|ing) along|came along": "bundled, ships with",
    r"(?<!there )\bis no (?!longer|more|less|better|worse|faster|slower)\w+": "is not a",
    r"\bgo(es)? on\b|\bwent on\b": "continues, resumes",
    # One message keeps it: scripts look for it in logs.
    r"(?<!the processes of the data loader are started )\banew\b": "again, from scratch",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bhears? of\b|\btold\b(?! apart)": "is called with, receives",
    r"\bof what it is\b": "name the thing",
    r"\bwhat is (on|in) (an |the )?images?\b": "the contents of images",
    r"\bthe road\b|\broad from\b|\bthe stairs\b": "the roadmap, steps",
    r"(?<!--)\brungs?\b(?!: )": "step",  # The option and the argument keep their names.
    r"\bpeers?\b": "timm models",
    r"\bforeign\b": "imported",
    r"\b(suppress\w*|drop\w*) (of )?doubles\b": "NMS, duplicates",
    r"\bfact sheet\b": "model card",
    r"\bsettl(e|es|ed|ing)\b": "resolve",
    r"\bthe laboratory\b": "studies",
    r"\bat hand\b": "available",
    r"\bfor want of\b": "because there is no, without",
    r"\bbut for\b": "except",
    r"\bin vain\b": "without result",
    r"\bfor ever\b": "forever",
    r"\bby heart\b": "memorized",
    r"\bof like (size|kind)\b": "of similar size",
    r"\bin the place of\b": "instead of",
    r"\bother work\b": "other processes",
    r"\bthe clock('s)?\b": "the time, timing",
    r"\bbehind your back\b": "silently",
    r"(?-i:\bOf (the|an?|each|that|this|it|its|all|what|those|both|every)\b)": "no such fragment",
    r"\b\w*colour\w*": "color",
    r"\bgrey\w*": "gray",
    r"\b(centre\w*|metres?|fibre)\b": "center, meter",
    r"\b(licen[c]e\w*|defence|offence)\b": "license",
    r"\bartefact\w*": "artifact",
    r"\b\w*(behaviour|neighbour|favour|flavour|honour|labour)\w*": "behavior, neighbor, favor",
    rf"\b\w*({_STEMS})is(e|es|ed|ing|er|ers|able|ation|ations)\b": "-ize",
    r"\banalys(e|es|ed|ing)\b": "analyze",
    r"\b\w*(labell|modell|cancell|travell|channell|signall|initiall(?!y))(ed|ing|er)\b": "one l",
    r"\b(whilst|learnt|spelt|fulfil|judgement|programme)\b": "while, learned, spelled",
}
_COMPILED = {re.compile(p, re.IGNORECASE | re.MULTILINE): say for p, say in PHRASES.items()}


def found_in(text: str) -> Iterator[tuple[str, str]]:
    """Yield each phrase that a text has, and what to write instead."""
    for pattern, instead in _COMPILED.items():
        for match in pattern.finditer(text):
            yield " ".join(match.group().split()), instead


def prose_of_markdown(text: str) -> str:
    """Return the text of a page without code, and with the comments in its code."""
    kept, in_code = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif in_code:
            kept.append(line.partition("# ")[2])
        elif not line.startswith(":::"):
            kept.append(line)
    return _without_code("\n".join(kept))


def prose_of_python(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every string with more than one word, docstrings included.

    The replacement fields of f-strings are written as X.
    """
    tree = ast.parse(text)
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(value) for node in joined for value in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            values = [v.value if isinstance(v, ast.Constant) else "X" for v in node.values]
            prose = "".join(map(str, values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            prose = "" if id(node) in parts else node.value
        else:
            continue
        if " " in prose:
            yield node.lineno, _without_code(prose)


def _without_code(text: str) -> str:
    return re.sub(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->", "`", text, flags=re.DOTALL)


def pages() -> list[Path]:
    """Return the pages in English that are checked as a whole."""
    named = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md"]
    docs = [p for p in (ROOT / "docs").rglob("*.md") if not p.name.endswith(".ko.md")]
    return [ROOT / name for name in named] + sorted(docs)


def modules() -> list[Path]:
    """Return the Python files whose strings are checked."""
    return sorted(
        p for top in ("src", "examples", "benchmarks") for p in (ROOT / top).rglob("*.py")
    )


def count(path: Path) -> list[str]:
    """Return one line for every phrase in a Python file."""
    name = path.relative_to(ROOT).as_posix()
    return [
        f"{name}:{line}: {phrase!r}; write: {instead}"
        for line, prose in prose_of_python(path.read_text(encoding="utf-8"))
        for phrase, instead in found_in(prose)
    ]


if __name__ == "__main__":
    found = {path.relative_to(ROOT).as_posix(): count(path) for path in modules()}
    for path in pages():
        for phrase, instead in found_in(prose_of_markdown(path.read_text(encoding="utf-8"))):
            print(f"{path.relative_to(ROOT)}: {phrase!r}; write: {instead}")
    if "--update" in sys.argv:
        rows = [f"{len(lines)} {name}\n" for name, lines in found.items() if lines]
        LEFT.write_text("".join(rows), encoding="utf-8")
    for lines in found.values():
        print(*lines, sep="\n", end="\n" if lines else "")
    print(sum(map(len, found.values())), "phrases are left in Python files")
