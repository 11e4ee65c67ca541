"""The places of a project, and the files that a restricted job may read."""
