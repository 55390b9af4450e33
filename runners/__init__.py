"""Everything that happens on a worker host: images, mirrors, containers, the gateway, the agents."""
