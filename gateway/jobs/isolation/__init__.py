"""Isolation of tenants on shared backends: judgement of prompts, secret folders, names that a tenant sees. Pure."""
