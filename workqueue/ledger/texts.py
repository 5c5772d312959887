"""Texts as every store can keep them."""

STORY_LENGTH = 20_000
"""Characters of a task's story that are kept, the latest; a line is some 2,500 at most."""


def text_of(text: str) -> str:
    """The text without NUL, which PostgreSQL can't keep, and without halves of surrogates."""
    if text.isprintable():  # true of nearly all, and quick; no surrogate is
        return text
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
