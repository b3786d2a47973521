"""`report`: what readers and editors find, by the means they have: the page tree, search, URLs. Prints JSON.

`faults` holds what Wagtail finds wrong with its tree, pictures without a file, and pages that cannot be fetched.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.test import Client
from wagtail.images import get_image_model
from wagtail.models import Page, ReferenceIndex, Revision

from ...models import ArticlePage
from ...pages import DESKS

PROBLEMS = ("characters in path", "length of path", "parent missing", "depth", "numchild")
FETCHED = 10
"""Articles below every section that are fetched by their URL."""


class Command(BaseCommand):
    help = __doc__

    def handle(self, *args: Any, **options: Any) -> None:
        faults = [*tree_faults(), *missing_content(), *unreadable()]
        found = {
            "pages": Page.objects.count(),
            "articles": {str(section): list(articles(section)) for section in Page.objects.filter(depth=3)},
            "revisions": Revision.objects.count(),
            "pictures": sorted(get_image_model().objects.values_list("title", flat=True)),
            "people": sorted(get_user_model().objects.values_list("username", flat=True)),
            "desks": get_user_model().objects.filter(groups__name=DESKS).count(),
            "references": ReferenceIndex.objects.count(),
            "search": {
                word: sorted(page.pk for page in ArticlePage.objects.live().search(word))
                for word in ("harbour", "tram", "lighthouse")
            },
            "faults": faults,
        }
        self.stdout.write(json.dumps(found, ensure_ascii=False))


def tree_faults() -> Iterator[str]:
    for what, keys in zip(PROBLEMS, Page.find_problems(), strict=True):
        if keys:
            yield f"{what}: pages {list(keys)}"


def articles(section: Page) -> Iterator[str]:
    """Every article below a section, as the application loads it, in the order of the tree."""
    for article in ArticlePage.objects.descendant_of(section).order_by("path"):
        picture = article.picture.title if article.picture else None
        links = [(link.title, link.url) for link in article.links.all()]
        content = hashlib.sha256(json.dumps(article.body.get_prep_value()).encode()).hexdigest()[:12]
        yield " | ".join(
            map(
                str,
                (
                    *(
                        article.path,
                        article.url_path,
                        article.title,
                        article.lead,
                        article.live,
                        article.owner,
                    ),
                    *(picture, sorted(article.tags.names()), links, content, article.revisions.count()),
                ),
            )
        )


def missing_content() -> Iterator[str]:
    """Pages whose parts did not all arrive."""
    for page in Page.objects.exclude(depth=1):
        if type(page.specific) is Page:
            yield f"page {page.pk} is nothing specific"
    for article in ArticlePage.objects.exclude(latest_revision=None):
        article.latest_revision.as_object()  # raises what is missing
    for image in get_image_model().objects.all():
        if not image.file.storage.exists(image.file.name):
            yield f"picture {image.pk} has no file"


def unreadable() -> Iterator[str]:
    """Pages that a reader cannot fetch."""
    client = Client(SERVER_NAME="localhost")
    for section in Page.objects.filter(depth=3):
        for article in ArticlePage.objects.live().descendant_of(section).order_by("-pk")[:FETCHED]:
            answer = client.get(article.relative_url(article.get_site()))
            if answer.status_code != 200 or article.lead not in answer.content.decode():
                yield f"{article.url_path} answers {answer.status_code}"
