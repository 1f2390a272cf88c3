"""The HTTP edge: a request becomes an envelope, and an outcome a response. Knows no protocol and no server."""
