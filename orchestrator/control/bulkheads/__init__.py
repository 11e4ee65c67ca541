"""What keeps one item from stopping a loop, and one loop from stopping the service unnoticed."""
