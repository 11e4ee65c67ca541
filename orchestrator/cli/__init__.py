"""The command line: reads specs and options, calls jobs, store or service, and shows results."""
