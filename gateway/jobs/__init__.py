"""The life of a job: admission, ledger, dispatcher, routing, fair share, relay of its events, collection, recovery."""
