"""Who may use the gateway: callers with keys and limits, and the accounts that keep many processes within those."""
