"""Who sends a request: bearer tokens (RFC 6750) that are JWTs, verified with the keys of their issuer.

Nothing but ``enabled`` is imported where AUTH_JWKS_URL is not set.
"""
