"""The commands by what they work on: each module is loaded when one of its commands is used."""
