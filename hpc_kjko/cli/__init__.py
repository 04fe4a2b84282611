"""The command line of kjko: one module for the words, two for what the verbs do."""
