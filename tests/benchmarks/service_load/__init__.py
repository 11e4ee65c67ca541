"""Parts of the service's load benchmark."""
