"""Named workflows: graphs with typed parameters that tenants store and run by a name."""
