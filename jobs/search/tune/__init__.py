"""Run the trials of a search with Ray Tune."""
