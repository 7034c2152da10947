"""All that trains: the procedural world, the embedded base, the adapter. The core never imports it."""
