"""What operators see: metrics, structured logs, and background tasks that report their failures."""
