"""The drafters, which propose trees."""
