"""JSON bodies of the service's API, as one set of models for the server and its client."""
