"""Several Ray hosts on one machine, in network namespaces, and the bytes between them."""
