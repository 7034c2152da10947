"""CustomContrast behind the interfaces of other libraries."""
