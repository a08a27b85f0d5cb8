"""From a configuration to an Alveo card: build recipes, checks that need no vendor tool, reports, the build itself."""
