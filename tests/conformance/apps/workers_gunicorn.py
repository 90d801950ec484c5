"""Settings of gunicorn that tell an app in `workers_wsgi` when its worker has started."""


def post_worker_init(worker):
    worker.wsgi.start(worker.cfg.threads)
