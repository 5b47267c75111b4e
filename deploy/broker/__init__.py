"""Who may do what on the broker, and how full its queues may get: the policy, its check, its application."""
