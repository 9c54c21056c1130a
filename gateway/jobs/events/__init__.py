"""Events of a job, as its client's session gets them."""
