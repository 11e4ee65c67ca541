"""The commands, grouped by subject: a module is loaded when one of its commands is used."""
