"""Warm workers: processes that have imported what a run needs, kept on a cluster between runs."""
