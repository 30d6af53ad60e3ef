"""The limit that all processes of a cluster share: client, limiter, and the messages between them."""
