"""Retrain an adapter on new data and promote the result only if it passes its gate."""
