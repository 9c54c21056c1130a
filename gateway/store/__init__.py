"""Data that outlives the process: the journal, blobs, the spool and user data. A protocol hides its form."""
