"""Keep runs, adapters, schedules and tokens in a database."""
