"""Certificates (and later access rules) of the embedded stack."""
