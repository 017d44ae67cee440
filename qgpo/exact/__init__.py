"""The yardstick: closed forms and distances, for what a guidance should be. Nothing learned."""
