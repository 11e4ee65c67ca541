"""Turn the rows of a data set into token sequences and batches for each worker."""
