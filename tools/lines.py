"""Count lines of code: without docstrings, comments and blank lines.

python tools/lines.py src tests
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

WITHOUT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of(source: str) -> int:
    """Return the number of lines on which some token stands that is neither a comment nor part of a docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in WITHOUT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


if __name__ == "__main__":
    for name in sys.argv[1:] or ["src"]:
        files = sorted(Path(name).rglob("*.py"))
        print(
            f"{name}: {sum(lines_of(file.read_text(encoding='utf-8')) for file in files)} lines in {len(files)} files"
        )
