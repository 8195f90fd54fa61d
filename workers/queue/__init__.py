"""The Celery application, its tasks, and the parts of a worker process."""
