"""Kombu loops that take in what others publish to RabbitMQ. No HTTP, no Celery tasks."""
