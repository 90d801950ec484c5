"""A cart, which is filled by a form with a CSRF token."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.middleware.csrf import get_token
from django.urls import path


def cart(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        request.session["items"] = [*request.session.get("items", []), request.POST["item"]]
    return JsonResponse({"items": request.session.get("items", []), "token": get_token(request)})


urlpatterns = [path("cart", cart)]
