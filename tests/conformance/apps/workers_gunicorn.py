"""Settings of gunicorn that start the app in `workers_wsgi` with its worker, before the first request."""


def post_worker_init(worker):
    worker.wsgi.start(worker.cfg.threads)
