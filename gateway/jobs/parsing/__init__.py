"""Long JSON, parsed in a process apart."""
