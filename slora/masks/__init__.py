"""Mask strategies: how the entries that may move are chosen. A file and a line for each."""
