"""Look at the models and data of specs in child processes with limits."""
