"""What outlives the process: the journal, blobs, the spool, and what web UIs save, behind a protocol."""
