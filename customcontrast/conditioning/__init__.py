"""From a prompt to text contexts: parsing, tokenising, text encoders on input embeddings, S+ contexts."""
