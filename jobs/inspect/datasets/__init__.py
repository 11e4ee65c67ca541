"""Rows of files, as examples, as token sequences, as batches."""
