"""No pages: the project is all WebSockets."""

urlpatterns = []
