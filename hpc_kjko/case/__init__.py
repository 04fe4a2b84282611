"""The pydantic models that check a case file, one for each section."""
