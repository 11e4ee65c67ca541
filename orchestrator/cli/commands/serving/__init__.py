"""Commands about inference servers: start one, and deploy adapters to them."""
