"""What the training of the base and of the adapter share."""
