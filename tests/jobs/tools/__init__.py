"""Tests of the tools for adapters."""
