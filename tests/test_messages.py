"""What users read is reviewed: no message changes without its line in tests/messages.txt."""

from __future__ import annotations

from tests.messages import SNAPSHOT, collect_messages


def test_every_message_stands_in_the_snapshot():
    hint = "a message changed: run `python -m tests.messages --write` and read the diff"
    assert collect_messages().splitlines() == SNAPSHOT.read_text("utf-8").splitlines(), hint
