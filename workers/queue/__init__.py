"""The Celery application, its tasks, and how a worker process is put together."""
