"""Bytes between sites: certificates, frames, spools, links. Rows pass through and are never read."""
