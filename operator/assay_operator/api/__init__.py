"""The API: pydantic models that are the only definition of the custom resources."""
