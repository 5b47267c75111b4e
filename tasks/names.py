"""Names on the broker: tasks, queues, exchanges. Stored and sent, so never renamed."""

from models.job import Priority

APPLY = "waybill.apply"
DELIVER = "waybill.deliver"

JOB_QUEUES = {
    Priority.NORMAL: "waybill.jobs",
    Priority.HIGH: "waybill.jobs.high",
    Priority.BULK: "waybill.jobs.bulk",
}
DELIVERIES_QUEUE = "waybill.deliveries"
ALL_QUEUES = (*JOB_QUEUES.values(), DELIVERIES_QUEUE)
"""What Celery workers consume."""
DEAD_MESSAGES = "waybill.jobs.dead"
"""Exchange and queue of what Celery or the broker gave up on."""

INTAKE = "waybill.intake"
"""Exchange and queue that upstream systems publish to."""
EXPIRED_INTAKE = "waybill.intake.expired"
"""Exchange and queue of upstream messages whose ``expiration`` passed before they could be taken."""
DEAD_INTAKE = "waybill.dead"
"""Exchange and queue of upstream messages that could not be taken."""
EVENTS = "waybill.events"
"""Exchange of job events."""
