"""The built-in types, one module each; what runs in worker processes has modules of its own."""
