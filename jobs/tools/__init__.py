"""Jobs on a committed adapter: chat, compare, export."""
