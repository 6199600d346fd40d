"""Train and serve the two models behind a "For You" timeline: TwHIN and the heavy ranker."""

__version__ = "0.1.0"
