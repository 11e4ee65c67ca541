"""Where runs and adapters are kept, and the order in which they get there. No torch."""
