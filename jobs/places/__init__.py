"""The places that the runs of a project may read, and the checks that hold them to it."""
