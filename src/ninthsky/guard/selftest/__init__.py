"""Is a card, or the way between two hosts, what it should be? Asked of suspected ones, and of idle spares."""
