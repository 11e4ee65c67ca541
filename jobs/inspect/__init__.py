"""Inspection of model folders, data files and recorded specs. No torch."""
