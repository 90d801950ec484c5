"""A cart, which is filled by a form with a CSRF token, and an upload in parts, which are kept in the cache."""

from django.core.cache import cache
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.middleware.csrf import get_token
from django.urls import path


def cart(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        request.session["items"] = [*request.session.get("items", []), request.POST["item"]]
    return JsonResponse({"items": request.session.get("items", []), "token": get_token(request)})


def upload(request: HttpRequest) -> HttpResponse:
    part = request.FILES["part"]
    sizes = [*cache.get(part.name, []), part.size]
    cache.set(part.name, sizes)
    return JsonResponse({"sizes": sizes})


urlpatterns = [path("cart", cart), path("upload", upload)]
