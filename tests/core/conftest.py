"""Settings of the core's tests: hypothesis has no deadline, since a busy machine is no defect."""

from hypothesis import settings

settings.register_profile("without deadline", parent=settings.default, deadline=None)
settings.load_profile("without deadline")
