"""Judge an adapter by the answers of a server that has loaded it. No torch."""
