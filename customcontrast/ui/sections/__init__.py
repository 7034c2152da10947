"""The sections of the page: layout and wiring of each side by side in its file; their components in `controls`."""
