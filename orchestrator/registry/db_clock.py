"""The database's clock as an SQL expression: the one clock that all its users share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class now(FunctionElement[float]):
    """Seconds since 1970 when the row is written, not when the transaction began."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _compile_sqlite(element: now, compiler: Any, **options: Any) -> str:
    # Not unixepoch('subsec'), which needs SQLite 3.42. This one is exact to 0.1 ms.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _compile_postgresql(element: now, compiler: Any, **options: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
