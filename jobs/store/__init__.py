"""Object stores, and the order in which runs and adapters are written to them. No torch."""
