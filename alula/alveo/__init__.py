"""From a configuration to a card: build recipes, checks that need no vendor tool, reports, the build itself."""
