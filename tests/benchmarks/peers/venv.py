"""The environment of TRL: a venv of its own that sees the libraries of this one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PINNED = ("trl==1.16.0", "accelerate==1.15.0")
FOLDER = Path(".cache/peers")


def make_trl_venv() -> Path:
    """Return the Python of the venv, which is made once.

    Torch, transformers and PEFT are those of this environment, so that both sides compute with the
    same libraries; what TRL needs beside them is installed into the venv.
    """
    folder = FOLDER.absolute() / "-".join(PINNED).replace("==", "-")
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if ready.is_file():
        return python
    venv.create(folder, with_pip=False, symlinks=True, clear=True)
    own_packages = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    shared = Path(own_packages["purelib"]) / "shared.pth"
    shared.write_text(sysconfig.get_paths()["purelib"] + os.linesep, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *PINNED]
    subprocess.run(pip, check=True)
    ready.touch()
    return python
