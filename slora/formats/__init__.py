"""Adapter files: the PEFT and the compact format, export, merge and comparison."""
