"""Claude as a live API: one server in front of every service we run, with a log row, latency and cost per request."""
