"""The collisionless part of a step: stages, their compositions, the gyration in a magnetic field."""
