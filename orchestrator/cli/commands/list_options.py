"""Options that take several values behind one name: `--places s3://b/lab/ /data/lab/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from typer.core import TyperCommand

LIST_OPTIONS = ("--places", "--models")


class ListOptionCommand(TyperCommand):
    """A command whose list options take every value up to the next option."""

    # Any: Typer has its own click under a private name.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the name of the option before each of its values, as click expects it."""
        return list(super().parse_args(ctx, list(_repeat_names(args))))


def _repeat_names(words: Sequence[str]) -> Iterator[str]:
    option = None
    for index, word in enumerate(words):
        if word.startswith("-"):
            option = word if word in LIST_OPTIONS else None
            yield word
        elif option is not None and words[index - 1] != option:
            yield from (option, word)
        else:
            yield word
