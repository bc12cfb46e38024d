"""Finds the program in what a model wrote.

For function tests this runs in the candidate's process, under its limits and before any of its code
does: Python's parser can be made to run out of stack by a text that was written for it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

_PYTHON = frozenset({"", "py", "python", "python3", "py3"})
_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]*)")
_STARTS_CODE = re.compile(r"^(?:def|class|import|from|async def|@)\b|^@")
_TRIES = 50  # lines cut off the end of a text that does not parse


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a Markdown text, as (language, content); the last may be unclosed."""
    found: list[tuple[str, str]] = []
    fence, language = "", ""
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if not fence:
            if mark:
                fence, language, lines = mark[1], mark[2].lower(), []
        elif mark and mark[1].startswith(fence) and not mark[2]:
            found.append((language, "".join(lines)))
            fence = ""
        else:
            lines.append(line)
    if fence:
        found.append((language, "".join(lines)))
    return found


def answer_of(completion: str) -> str:
    """The completion without the reasoning before it."""
    return completion.rpartition("</think>")[2] if "</think>" in completion else completion


def whole_program(completion: str, python: bool) -> str | None:
    """A program for stdin/stdout cases: the last block, else the whole text.

    Args:
        python: whether the last block in Python is preferred, and a text without any line that
            looks like code is none.
    """
    text = answer_of(completion)
    found = blocks(text)
    if python and (in_python := [block for block in found if block[0] in _PYTHON]):
        found = in_python
    if found:
        return found[-1][1] if found[-1][1].strip() else None
    if not text.strip():
        return None
    looks = re.compile(
        r"^\s*(?:[\w.]+\s*(?:[-+*/]?=|\()|import |from |for |while |if |def |class )"
    )
    if python and not any(map(looks.match, text.splitlines())):
        return None
    return text


def prompt_code(prompt: str, entry: str) -> str:
    """The Python in a prompt, complete: the prompt itself, or its last block that defines `entry`.

    A function that has no body yet gets an empty one.
    """
    return _closed(_given(prompt, entry)) or ""


def _given(prompt: str, entry: str) -> str:
    """The Python in a prompt as it stands there."""
    tree = _parse(_closed(prompt) or "")
    # A word or two parse as Python as well; code binds a name.
    if tree is not None and any(map(_names, tree.body)):
        return prompt
    for language, content in reversed(blocks(prompt)):
        if language in _PYTHON and _defines(_closed(content) or "", entry):
            return content
    return ""


def _closed(text: str) -> str | None:
    for whole in (text, f"{text.rstrip()}\n    pass\n"):
        if _parse(whole) is not None:
            return whole
    return None


def function_program(completion: str, prompt: str, entry: str) -> str | None:
    """The program that defines a function: what the model wrote, after what it was given.

    A completion may be a text with fenced blocks, a whole function, the body that continues the
    prompt, or both together. Imports and helper functions of the prompt stand before it.

    Args:
        completion: what the model wrote.
        prompt: what it was asked; it counts where it is Python, or holds a block that is.
        entry: the function's name.

    Returns:
        None where nothing looks like a program. A program that does not parse is one, if it looks
        like one: its author made the error, not its reader.
    """
    text = answer_of(completion)
    given = _given(prompt, entry)
    fenced = blocks(text)
    # Blocks of another language only if there are no others: their label may be wrong.
    found = [c for language, c in fenced if language in _PYTHON] or [c for _, c in fenced]
    parts = [content for content in reversed(found) if content.strip()] if fenced else [text]
    for part in parts:
        for program in _readings(part, given, entry):
            return program
    for part in parts:
        if fenced or _looks_like_code(part, entry):
            return _after(given, part)
    return None


def _readings(text: str, given: str, entry: str) -> Iterator[str]:
    """Programs that parse and define the function, the likeliest reading first."""
    if _defines(text, entry):
        yield _after(given, text)
    if text[:1].isspace() and (continued := _continued(text, given, entry)):
        yield continued
    lines = text.splitlines(keepends=True)
    starts = [i for i, line in enumerate(lines) if _STARTS_CODE.match(line)]
    if starts and not text[:1].isspace():  # prose around a function without fences
        for end in range(len(lines), max(starts[0], len(lines) - _TRIES), -1):
            if _defines(part := "".join(lines[starts[0] : end]), entry):
                yield _after(given, part)


def _continued(text: str, given: str, entry: str) -> str | None:
    """The prompt and a body, up to where the body ends if what follows does not parse."""
    lines = text.splitlines(keepends=True)
    body = next((i for i, line in enumerate(lines) if line.strip() and not line[0].isspace()), None)
    texts = [text] if body is None else [text, "".join(lines[:body])]
    complete = _closed(given) or ""
    # A stub's body has to be there; one of a docstring alone has to grow.
    needed = _statements(complete, entry) + (complete == given)
    for part in texts:
        program = (given if given.endswith("\n") else given + "\n") + part.lstrip("\n")
        if _statements(program, entry) >= needed:
            return program
    return None


def _after(given: str, text: str) -> str:
    if not given or "from __future__" in text or text.startswith(given.strip()[:200]):
        return text
    return f"{_closed(given)}\n{text}"


def _looks_like_code(text: str, entry: str) -> bool:
    return re.search(rf"\bdef\s+{re.escape(entry)}\b", text) is not None or bool(
        text[:1].isspace() and re.search(r"^\s+(?:return\b|\w+\s*=|for |if |while )", text, re.M)
    )


def _parse(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _defines(text: str, entry: str) -> bool:
    tree = _parse(text)
    return tree is not None and any(entry in _names(node) for node in _top_level(tree.body))


def _top_level(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in statements:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            yield from _top_level(statement.body)


def _names(statement: ast.stmt) -> set[str]:
    """The names that a statement binds."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    if isinstance(statement, ast.Assign):
        return {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return set()


def _statements(text: str, entry: str) -> int:
    """How many nodes the last definition of a function has; -1 for none."""
    tree = _parse(text)
    bodies = [
        len(list(ast.walk(node)))
        for node in (tree.body if tree else [])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == entry
    ]
    return bodies[-1] if bodies else -1
