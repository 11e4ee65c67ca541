"""The method's layers, and the functions that install them in a model."""
