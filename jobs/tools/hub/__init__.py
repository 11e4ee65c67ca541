"""Publish an adapter on a model hub, with a model card from its manifest. No torch."""
