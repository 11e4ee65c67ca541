"""Errors of this machine's files, told in one line: what was full, closed or gone."""

from __future__ import annotations

import errno
import os

from jobs.errors import Fault, InputError, JobsError, StoreError

FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def translate_file_error(error: OSError) -> JobsError | None:
    """Return the error for a disk that is full, a file that is closed to this user, or a working
    directory that was deleted; None for any other error, which is one of the code."""
    reason = error.strerror or str(error)
    if error.errno in FULL:
        where = f"{error.filename}: " if error.filename else ""
        return StoreError(f"{where}{reason}. Free some space there, or use another disk.")
    if error.errno in CLOSED and error.filename:
        remedy = "Use a place that this user may read and write."
        return InputError([Fault(str(error.filename), reason, remedy)])
    if isinstance(error, FileNotFoundError) and not is_working_directory():
        problem = "the working directory was deleted"
        return InputError([Fault(".", problem, "Change to one that exists.")])
    if isinstance(error, FileNotFoundError) and "temporary directory" in reason:
        remedy = "Set it to a folder that this user may write to."
        return InputError([Fault("TMPDIR", "there is no folder for temporary files", remedy)])
    return None


def is_working_directory() -> bool:
    """Return whether the working directory still exists."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True
