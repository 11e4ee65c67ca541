"""Retraining: new rows into a new version, which takes over only where its gate holds."""
