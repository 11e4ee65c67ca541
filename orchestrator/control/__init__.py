"""Accept runs, submit and follow them, and fire schedules. Needs no torch."""
