"""Walk a folder of data with the folders that its links lead to, each of them once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from jobs.places import boundary
from jobs.spec.address_types import AddressKind

SkipHandler = Callable[[Path, str], None]


def is_hidden(name: str) -> bool:
    """Return whether files and folders of this name are not read as part of a folder."""
    return name.startswith((".", "_"))


def walk_folders(
    root: Path,
    *,
    on_error: Callable[[OSError], None],
    on_skip: SkipHandler | None = None,
    with_hidden: bool = False,
) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folder and those below it, each with the sorted names of what is no folder.

    A link to a folder is followed, unless it leads to one that is read anyway or to one around the
    link. Raise InputError if a link leads out of the places of this process.
    """
    real_root = Path(os.path.realpath(root))
    walked = {str(real_root)}
    for parent, folders, names in os.walk(root, onerror=on_error, followlinks=True):
        followed = list[str]()
        for name in sorted(folders):
            path = Path(parent, name)
            if is_hidden(name) and not with_hidden:
                continue
            reason = _find_skip_reason(path, real_root, walked, with_hidden=with_hidden)
            if reason is None:
                walked.add(os.path.realpath(path))
                followed.append(name)
            elif on_skip is not None:
                on_skip(path, reason)
        folders[:] = followed
        yield Path(parent), sorted(names)


def describe_absent_file(path: Path) -> str | None:
    """Return why an entry of a folder is no file, or None if it is one."""
    if path.is_file():
        return None
    if path.is_symlink() and not path.exists():
        return f"a broken link to {os.readlink(path)}"
    return "neither a file nor a folder"


def _find_skip_reason(path: Path, root: Path, walked: set[str], *, with_hidden: bool) -> str | None:
    """Return why a folder is not walked; `root` has its own links resolved."""
    real = Path(os.path.realpath(path))
    if path.is_symlink():
        boundary.check_files("data", str(path), (path,), AddressKind.DATA)
        around = (root, Path(os.path.realpath(path.parent)))
        if any(folder.is_relative_to(real) for folder in around):
            return f"a link to {real}, the folder that it is in"
        # The folder itself is read, not the link, so that its own name tells the split.
        if real.is_relative_to(root) and (
            with_hidden or not any(map(is_hidden, real.relative_to(root).parts))
        ):
            return f"a link to {real}, which is read already"
    return f"{real} is read already" if str(real) in walked else None
