"""Who is asking: passwords, access tokens, service tokens."""
