"""Keys of what a request carries once it was admitted."""

IDENTITY = "identity"
# Set once part of an answer may be out.
STREAMING = "streaming"
# What let the caller in: whatever takes long ends when that holds no more.
GRANT = "grant"
# Headers that an answer with a file gets beside the file's own.
MORE_HEADERS = "more_headers"
# Set once a prompt was accepted: an error after that is the job's, and no refusal of a prompt.
ACCEPTED = "accepted"
# Set if a backend's refusal is not to be passed on, because the route has a form of its own for errors.
OWN_ERRORS = "own_errors"
