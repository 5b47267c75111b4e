"""What a Celery worker does: apply, deliver, sweep, announce. No HTTP intake, no tables."""
