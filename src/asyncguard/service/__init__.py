"""The service that shows a guard at work."""
