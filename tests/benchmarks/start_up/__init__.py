"""How long the command line takes to answer, and a run to start and to end."""
