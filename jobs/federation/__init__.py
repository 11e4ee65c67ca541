"""Train one adapter on the rows of many clients; only trained weights leave a site."""
