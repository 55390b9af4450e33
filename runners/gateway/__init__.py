"""The gateway: the one door of an attempt's container."""
