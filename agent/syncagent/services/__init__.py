"""The agent at work: asyncio loops over the Protocols of `ports`, deciding with the core."""
