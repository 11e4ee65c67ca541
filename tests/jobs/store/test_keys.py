"""Keys: the valid ones, and those that no store ever sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.store.keys import check_key
from jobs.store.local import DirectoryStore

HOSTILE = {
    "empty": ("", "is empty"),
    "parent": ("../secret", "'.' or '..'"),
    "parent inside": ("adapters/../../secret", "'.' or '..'"),
    "parent at the end": ("adapters/..", "'.' or '..'"),
    "dot": ("adapters/./chat", "'.' or '..'"),
    "absolute": ("/etc/passwd", "is absolute"),
    "double slash": ("adapters//chat", "empty part"),
    "slash at the end": ("adapters/chat/", "empty part"),
    "backslash": ("adapters\\..\\secret", "backslash"),
    "nul": ("adapters/chat\0.json", "cannot be printed"),
    "newline": ("adapters/chat\n", "cannot be printed"),
    "escape": ("adapters/\x1b[2J", "cannot be printed"),
    "delete": ("adapters/\x7f", "cannot be printed"),
    "c1 control": ("adapters/\x9b2J", "cannot be printed"),
    "right to left": ("adapters/\u202etxt.exe", "cannot be printed"),
    "lone surrogate": ("adapters/\ud800", "cannot be printed"),
    "line separator": ("adapters/\u2028", "cannot be printed"),
    "the store's own": (".tmp/1-2", "is reserved for the store"),
    "the store's probe": (".tmp-probe-1/first", "is reserved for the store"),
    "too long": ("a/" * 600 + "a", "longer than 1024 bytes"),
}


@pytest.mark.parametrize(("key", "says"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_key_is_refused_before_anything_is_touched(key: str, says: str, tmp_path: Path):
    store = DirectoryStore(tmp_path / "store")
    for act in (
        lambda: store.put(key, b"x"),
        lambda: store.get(key),
        lambda: store.head(key),
        lambda: store.delete(key),
        lambda: store.local_path(key),
    ):
        with pytest.raises(InputError) as caught:
            act()
        assert says in str(caught.value)
        assert str(caught.value).isascii()
        assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "key",
    ["a", "adapters/chat/v1/manifest.json", "adapters/chat/v1/.claim", "a..b/c", "naïve/ключ x"],
)
def test_a_valid_key_is_accepted_unchanged(key: str, store: DirectoryStore):
    assert check_key(key) == key
    store.put(key, b"x")
    assert store.get(key) == b"x"
    assert list(store.list("")) == [key]


@pytest.mark.parametrize("prefix", ["../", "/etc/", "a//b/", "a/\0/"])
def test_an_invalid_prefix_lists_nothing_outside(prefix: str, store: DirectoryStore):
    with pytest.raises(InputError):
        store.list(prefix)
