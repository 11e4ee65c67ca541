"""The service's signature: its key, and the check of a run's commit before it is signed."""
