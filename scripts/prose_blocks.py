"""Read the prose of a file: a page's paragraphs, a program's docstrings, comments and messages, as blocks of text."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MIN_MESSAGE_WORDS = 3
"""A string of fewer words is a name, not prose."""
_PRAGMA = re.compile(r"#:?\s*(noqa\S*( \S+)?|type: ignore\S*|fmt: \S+|pragma: .*)|!.*")


class Block(NamedTuple):
    """A paragraph, list item, heading, table row, docstring, comment or message."""

    line: int
    text: str
    is_table: bool = False


def blocks_of(suffix: str, text: str) -> list[Block]:
    """Split a file into blocks, by the suffix of its name; by default as a page."""
    return sorted(_READERS.get(suffix, markdown_blocks)(text))


def markdown_blocks(markdown: str) -> Iterator[Block]:
    """Split a page into blocks, without its code."""
    blank = re.sub(r"^```.*?^```$", lambda code: "\n" * code[0].count("\n"), markdown, flags=re.DOTALL | re.MULTILINE)
    start, lines = 0, list[str]()
    for number, line in enumerate([*blank.splitlines(), ""], 1):
        begins_block = re.match(r"\s*([-*+] |\d+\. |#|\||<!--|$)", line)
        if begins_block and lines:
            yield Block(start, _plain("\n".join(lines)), is_table=lines[0].lstrip().startswith("|"))
            lines = []
        if line.strip() and not line.startswith("<!--"):
            start = start if lines else number
            lines.append(line)


def python_blocks(source: str) -> Iterator[Block]:
    """Yield the docstrings, the comments and the strings of at least MIN_MESSAGE_WORDS words."""
    tree = ast.parse(source)
    docstrings = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }
    for docstring in docstrings:
        yield from _paragraphs(docstring.lineno, str(docstring.value))
    inner = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and node not in docstrings | inner):
            message = _message(node)
            if (
                len(message.split()) >= MIN_MESSAGE_WORDS
                and not re.search(r"[<{]|^\[", message)
                and not _is_code(message)
            ):
                yield Block(node.lineno, _plain(message.replace("; expected", ". expected")))
    yield from _joined((line, text) for line, text in _python_comments(source))


def rust_blocks(source: str) -> Iterator[Block]:
    """Yield the comments of a Rust file, those of documentation too."""
    comments = ((n, re.match(r"\s*//[/!]? ?(.*)", line)) for n, line in enumerate(source.splitlines(), 1))
    yield from _joined((number, match[1]) for number, match in comments if match)


def yaml_blocks(source: str) -> Iterator[Block]:
    """Yield the comments of a YAML file."""
    comments = ((n, re.match(r"\s*# (.*)", line)) for n, line in enumerate(source.splitlines(), 1))
    yield from _joined((number, match[1]) for number, match in comments if match)


def _is_code(message: str) -> bool:
    """Return whether a string of several lines is a Python program."""
    try:
        return "\n" in message.strip() and bool(ast.parse(message))
    except SyntaxError:
        return False


def _message(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_message(value) if isinstance(value, ast.Constant) else "CODE" for value in values)
    return ""


def _python_comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and (text := _PRAGMA.sub("", token.string).lstrip("# ").strip()):
            yield token.start[0], text.strip("()")


def _paragraphs(line: int, docstring: str) -> Iterator[Block]:
    """Split a docstring at empty lines; leave out its indented code."""
    numbered = enumerate(docstring.splitlines(), line)
    indent = min((len(text) - len(text.lstrip()) for text in docstring.splitlines()[1:] if text.strip()), default=0)
    prose = [(n, text) for n, text in numbered if text.strip() and (n == line or not text[indent:].startswith(" "))]
    yield from _joined(prose)


def _joined(lines: Iterable[tuple[int, str]]) -> Iterator[Block]:
    """Join consecutive lines to one block."""
    start, texts = 0, list[str]()
    for number, text in lines:
        if texts and (number != start + len(texts) or re.match(r"\s*([-*+] |\|)", text)):
            yield Block(start, _plain("\n".join(texts)), is_table=texts[0].lstrip().startswith("|"))
            texts = []
        start = start if texts else number
        texts.append(text)
    if texts:
        yield Block(start, _plain("\n".join(texts)), is_table=texts[0].lstrip().startswith("|"))


def _plain(text: str) -> str:
    """Replace code and the targets of links."""
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "CODE", text))


_READERS: dict[str, Callable[[str], Iterator[Block]]] = {
    ".md": markdown_blocks,
    ".py": python_blocks,
    ".rs": rust_blocks,
    ".yml": yaml_blocks,
    ".yaml": yaml_blocks,
}
