"""The only modules that import kopf: they feed the view, and nothing more."""
