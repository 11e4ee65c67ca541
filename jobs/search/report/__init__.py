"""Show the trials of a search: live table, HTML report, and results as Parquet."""
