"""Print the answer of a model while it is generated, without what a terminal would interpret."""

from __future__ import annotations

from transformers import TextStreamer

from jobs.train.monitor.event_text import escape_control


class AnswerStream(TextStreamer):  # type: ignore[misc]
    """Prints each part of an answer, whether to a terminal or to a file that is shown in one."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a part of the answer, and a new line at its end."""
        super().on_finalized_text(escape_answer(text), stream_end)


def escape_answer(text: str) -> str:
    """Return the text with control characters escaped; newlines and tabs stay.

    Every character is escaped by itself, so it does not matter where a stream is cut.
    """
    return "\t".join(map(escape_control, text.split("\t")))
