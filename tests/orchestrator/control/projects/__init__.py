"""Projects on one service, one of them hostile: stores, names, places and pointers."""
