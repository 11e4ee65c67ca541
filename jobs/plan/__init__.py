"""The plan of a run, and the validation of its input before any worker starts. No torch."""
