"""Settings of gunicorn that start the workers of its app before the first request."""

from sticky_wsgi.gunicorn import post_worker_init

__all__ = ["post_worker_init"]
