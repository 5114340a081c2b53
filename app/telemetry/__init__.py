"""What is known of requests and of the process: metrics, request records, logs."""
