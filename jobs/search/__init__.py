"""`python -m jobs.search --spec SPEC`: the best adapter within a budget, found with Ray Tune."""
