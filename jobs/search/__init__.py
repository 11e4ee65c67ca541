"""Search over the keys of a spec with Ray Tune: `python -m jobs.search --spec SPEC`."""
