"""The client of the service's API, for the command line and for programs."""
