"""Mask strategies select the entries to train. A new one is a module and a line in the registry."""
