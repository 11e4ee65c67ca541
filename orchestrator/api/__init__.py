"""The HTTP API of the service: routes under /v1, the OpenAPI document, streams."""
