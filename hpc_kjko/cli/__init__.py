"""The command line of kjko: ``main`` defines the verbs, and two modules carry them out."""
