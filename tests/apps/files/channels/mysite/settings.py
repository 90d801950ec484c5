"""A project with Channels and the layer that keeps groups in the memory of each worker."""

SECRET_KEY = "a-key-of-the-tests"
ALLOWED_HOSTS = ["localhost"]
ROOT_URLCONF = "mysite.urls"
INSTALLED_APPS = ["channels"]
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
