"""Keys of what a request carries once it was admitted."""

IDENTITY = "identity"
# Set once part of an answer may be out.
STREAMING = "streaming"
# What let the caller in: whatever takes long ends when that holds no more.
GRANT = "grant"
