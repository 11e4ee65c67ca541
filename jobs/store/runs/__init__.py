"""The files and journals of runs in the store."""
