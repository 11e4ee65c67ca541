"""The parts of the quality benchmark that are no command of their own."""
