"""The one process that decides: the fleet in mind, judges asked, the ladder climbed, generations formed."""
