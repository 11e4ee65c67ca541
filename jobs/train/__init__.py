"""A training on the workers of a run, from the request to the committed adapter."""
