"""The database's own clock, as an expression: the one clock that all who use it share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class now(FunctionElement[float]):
    """Seconds since 1970 at the moment when the row is written, not when the transaction began."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _compile_sqlite(element: now, compiler: Any, **options: Any) -> str:
    # Not unixepoch('subsec'), which SQLite has since 3.42 only. This one is exact to 0.1 ms.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _compile_postgresql(element: now, compiler: Any, **options: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
