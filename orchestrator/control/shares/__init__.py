"""Fair shares: whose turn it is, and how much of the service one project may take."""
