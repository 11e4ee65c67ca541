"""Read the files of a data set, recognise their format, and check every row before a run."""
