"""A project that keeps sessions, and with them CSRF tokens, and uploads in the memory of each worker."""

SECRET_KEY = "a-key-of-the-tests"
ALLOWED_HOSTS = ["localhost"]
ROOT_URLCONF = "mysite.urls"
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
]
INSTALLED_APPS = ["django.contrib.sessions"]
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
SESSION_ENGINE = "django.contrib.sessions.backends.cache"
CSRF_USE_SESSIONS = True
