"""Communication between the workers of a run, counted by stage and cause."""
