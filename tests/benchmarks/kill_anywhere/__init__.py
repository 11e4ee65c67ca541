"""The parts of `kill_anywhere`: what is killed, and what one round shows."""
