"""The models that check a case file, section by section."""
