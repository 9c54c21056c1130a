"""Files that prompts name and files that jobs write."""
