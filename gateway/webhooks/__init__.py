"""Webhooks: events of jobs and backends, delivered to the URLs that tenants choose."""
