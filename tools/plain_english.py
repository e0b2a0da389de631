"""Find words and patterns that CONTRIBUTING.md ("How we write") asks us to avoid.

python tools/plain_english.py            # all texts of the repository: exit code 1 if there is a match
python tools/plain_english.py docs src/fedpgp/cli --count

Docstrings, comments and strings of Python files, comments of TOML files, and Markdown outside of code are read.
"""

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READ = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "src", "tests", "tools")
# Values of files, CSS and names of parameters, which are not prose.
VALUES = {
    "data sets",
    "alone",
    "#figures .beside",
    "| the positive pair alone − none | +2.6<br>+1.8..+3.6 |",
    "somebody made for us",
}
SKIPPED = ("docs/results/", "src/fedpgp/assets/", "tests/fixtures/", "tools/plain_english.py")
CODE = re.compile(r"`[^`]*`|\"\w+\"|\]\([^)]*\)|<[^>]*>|https?://\S+")
PATTERNS = {  # what is avoided -> what to write instead
    r"\bdata sets?\b": "dataset",
    r"\bmend(s|ed)?\b": "fix",
    r"\breckon(s|ed)?\b": "compute",
    r"\bso far\b": "until now, or yet",
    r"\balone\b": "only",
    r"\b(is|are|was|were) to (be|have)\b": "must",
    r"\bto be had\b": "available",
    r"\bso many\b": "a number, or this many",
    r"\bthose (that|which|who|of|in|with|whose)\b": "repeat the noun",
    r"\bthe ones? (that|which|who|of)\b": "repeat the noun",
    r"\b(is|are|and|than|as|to|has|have|from|with|by) that of\b": "repeat the noun",
    r"\b(some|any|every)body\b": "a client, a user, a person",
    r"\bnobody\b": "no client, no user",
    r"(?<!there )\b(is|are) no (?!longer|more)[a-z]+": "is not a",
    r"\b(go|goes|went|going) on\b(?! the)": "continue",
    r"\b(deal|deals|dealt|dealing) out\b": "distribute",
    r"\bstands? (in|behind|beside|there|below|above|before|after)\b": "is, or follows",
    r"\b(lie|lies|lay) (in|on|beside|below|there|elsewhere|next)\b": "is",
    r"\bbeside\b": "next to, or in addition to",
    r"\b(is|are|was|were) told\b": "is printed, or is reported",
    r"\btells? of\b": "report",
    r"\bhears? of\b": "is called with",
    r"\band no more\b": "only",
    r"\bwhere (there|it|they|nothing|nobody|none) (is|are|was|has|have|does|do)\b": "if, or when",
    r"\b(of|from|to|in|with|by|for) whom\b": "a clause with a subject",
    r"\bshall\b": "must, or will",
    r"\bthe (latter|former)\b": "repeat the noun",
    r"\bthe like\b": "for example",
    r"\bas it were\b": "nothing",
    r"\bin the place of\b": "instead of",
    r"\bfor itself\b": "separately",
    r"\banew\b": "again",
    r"\blikewise\b": "also",
    r"\bthereof|therein|whereby|whereof|hitherto\b": "plain words",
    r"\bahead of\b": "before",
    r"^(Of|In which|With which|Among|By which|From which|On which|That|Those|Which)\b(?! (is|are|this|the)\b)": "verb",
}
COMPILED = {re.compile(pattern, re.IGNORECASE if pattern[0] != "^" else 0): told for pattern, told in PATTERNS.items()}


def texts_of_python(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) for every comment, docstring and string with a blank in it."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("#: ")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            if not re.search(r"[<>{}\\$]|\|", node.value) or "\n" in node.value:
                for number, line in enumerate(node.value.split("\n")):
                    yield node.lineno + number, line.strip()
            elif re.search(r"[a-z] [a-z]+ [a-z]", node.value):
                yield node.lineno, node.value


def texts_of_toml(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) for every comment."""
    for number, line in enumerate(source.split("\n"), 1):
        if "#" in line:
            yield number, line.split("#", 1)[1].strip()


def texts_of_markdown(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) for every line outside of code."""
    fenced = False
    for number, line in enumerate(source.split("\n"), 1):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and not line.startswith("    "):
            yield number, line.strip("# *-|>")


def texts_of_notebook(source: str) -> Iterator[tuple[int, str]]:
    """Yield (cell, text) for every line of a cell in Markdown."""
    for number, cell in enumerate(json.loads(source)["cells"], 1):
        if cell["cell_type"] == "markdown":
            yield from ((number, text) for _, text in texts_of_markdown("".join(cell["source"])))


READERS = {
    ".py": texts_of_python,
    ".toml": texts_of_toml,
    ".md": texts_of_markdown,
    ".ipynb": texts_of_notebook,
}


def matches(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line, what was found, what to write instead) for every match in a file."""
    for line, text in READERS[path.suffix](path.read_text(encoding="utf-8")):
        prose = CODE.sub("", text)
        for pattern, instead in () if text.strip() in VALUES else COMPILED.items():
            for found in pattern.finditer(prose):
                yield line, prose[max(0, found.start() - 30) : found.end() + 30].strip(), instead


def files(names: list[str]) -> Iterator[Path]:
    """Yield the files to read, below the given files and directories."""
    for name in names:
        root = ROOT / name if not Path(name).is_absolute() else Path(name)
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            place = path.relative_to(ROOT).as_posix()
            if path.suffix in READERS and not place.startswith(SKIPPED):
                yield path


def main() -> None:
    """Print every match, or the number in each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(READ), help="files and directories")
    parser.add_argument("--count", action="store_true", help="print the number of matches in each file, and no match")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    for path in files(arguments.names):
        place = path.relative_to(ROOT).as_posix()
        for line, found, instead in matches(path):
            counts[place] += 1
            if not arguments.count:
                print(f"{place}:{line}: …{found}… write: {instead}")
    for place, count in counts.most_common() if arguments.count else ():
        print(f"{count:5} {place}")
    print(f"{counts.total()} matches", file=sys.stderr)
    sys.exit(bool(counts))


if __name__ == "__main__":
    main()
