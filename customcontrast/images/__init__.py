"""Reading pictures of any kind as clean RGB."""
