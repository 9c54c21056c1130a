"""Keys, roles, and what a tenant may see."""
