"""What a run will hold, send, take and cost, from the spec and the model's headers. No torch."""
