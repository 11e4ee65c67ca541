"""Several Ray hosts on one machine, in network namespaces, and the true bytes between them."""
