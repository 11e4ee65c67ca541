"""A prepared folder or set of files: made aside, moved into place whole, recorded by digest."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wheels import Pin, fetch, sha256


@dataclass(frozen=True)
class Product:
    """What `make` writes from one wheel; `recipe` goes up when it is to write other bytes."""

    name: str
    home: str
    owns_home: bool
    pin: Pin
    recipe: int
    make: Callable[[Path, Path], str]
    """Reads the wheel (first path), writes the files into an empty folder (second), sums it up."""


def prepare(product: Product, cache: Path) -> None:
    """Make the product unless it stands as recorded. The caller holds the cache's lock."""
    home = cache / product.home
    record = home.parent / f".{product.name}.prepared.json"
    if not product.owns_home:
        record = home / record.name
    if is_fresh(product, home, record):
        print(f"{product.name}: ready in {home}", flush=True)
        return
    print(f"{product.name}: preparing", flush=True)
    wheel = fetch(product.pin, cache / "packages")
    record.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    aside = record.parent / f".{product.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    print(f"  {product.make(wheel, aside)}", flush=True)
    names = sorted(str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file())
    _move_in(aside, home, whole=product.owns_home)
    _write(record, _recorded(product, home, names))
    print(f"  written to {home}", flush=True)


def is_fresh(product: Product, home: Path, record: Path) -> bool:
    """Whether every recorded file is there: by size and time, or else by digest."""
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    if (known["recipe"], known["source"]) != (product.recipe, product.pin.sha256):
        return False
    if all(_seen(home / name) == was["seen"] for name, was in known["files"].items()):
        return True
    same = all(_digest(home / name) == was["sha256"] for name, was in known["files"].items())
    if same:  # copied or touched, not changed: remember the new times
        _write(record, _recorded(product, home, list(known["files"])))
    return same


def _move_in(aside: Path, home: Path, *, whole: bool) -> None:
    if whole:
        shutil.rmtree(home, ignore_errors=True)
        aside.rename(home)
        return
    for path in aside.iterdir():
        path.replace(home / path.name)
    aside.rmdir()


def _recorded(product: Product, home: Path, names: list[str]) -> dict[str, object]:
    files = {
        name: {"sha256": sha256(home / name), "seen": _seen(home / name)} for name in sorted(names)
    }
    return {"recipe": product.recipe, "source": product.pin.sha256, "files": files}


def _seen(path: Path) -> list[int] | None:
    """Size and time of change, or nothing for a file that is gone."""
    if not path.is_file():
        return None
    return [path.stat().st_size, path.stat().st_mtime_ns]


def _digest(path: Path) -> str | None:
    return sha256(path) if path.is_file() else None


def _write(record: Path, value: dict[str, object]) -> None:
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(record)
