"""The service's client: what the command line uses, and any program that wants runs."""
