"""The parts of the paper's benchmark that are no command of their own."""
