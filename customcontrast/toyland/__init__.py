"""Parts of the embedded base model alone: its autoencoder, and the features of its known subjects."""
