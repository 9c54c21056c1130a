"""The Comfy API v2 over the ledger: jobs, events, assets."""
