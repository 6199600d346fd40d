"""The demo: from nothing to a ranked timeline in a simulated world, each figure beside the best that is possible."""
