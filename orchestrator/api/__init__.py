"""The service's door: HTTP under /v1, its documents, its streams."""
