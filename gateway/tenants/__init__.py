"""Keys, roles, limits, and which backends, models and files a tenant may use."""
