"""Making pictures, articles and people, as the forms of the admin would."""

import datetime as dt
import io
import random
import struct
import uuid
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.files.images import ImageFile
from PIL import Image as Picture
from wagtail.images import get_image_model
from wagtail.models import Page

from .models import ArticleLink, ArticlePage

WORDS = [
    "harbour",
    "council",
    "bridge",
    "winter",
    "market",
    "school",
    "river",
    "library",
    "tram",
    "election",
    "museum",
    "orchard",
    "storm",
    "festival",
    "hospital",
    "theatre",
    "garden",
    "railway",
    "bakery",
    "lighthouse",
]
TAGS = ("city", "culture", "economy", "science", "sport", "weather")
DESKS = "Desks"


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def new_image(rng: random.Random, title: str) -> Any:
    """An uploaded picture of a colour."""
    file = io.BytesIO()
    Picture.new("RGB", (40, 30), tuple(struct.unpack("3B", rng.randbytes(3)))).save(file, "PNG")
    name = f"{uuid.UUID(int=rng.getrandbits(128))}.png"
    return get_image_model().objects.create(title=title, file=ImageFile(file, name=name))


def new_article(rng: random.Random, parent: Page, title: str, owner: Any, picture: Any = None) -> ArticlePage:
    """An article below `parent`, published."""
    article = ArticlePage(
        title=title,
        owner=owner,
        date=dt.date(2026, 1, 1) + dt.timedelta(days=rng.randrange(300)),
        lead=words(rng, 12),
        picture=picture,
        body=body(rng, picture),
    )
    article.tags.add(*rng.sample(TAGS, 2))
    article.links = [
        ArticleLink(title=words(rng, 2), url=f"https://example.org/{rng.randrange(10**6)}", sort_order=i)
        for i in range(rng.randrange(3))
    ]
    parent.add_child(instance=article)
    article.save_revision(user=owner).publish(user=owner)
    return article


def body(rng: random.Random, picture: Any = None) -> list[tuple[str, Any]]:
    blocks: list[tuple[str, Any]] = [
        ("heading", words(rng, 3)),
        ("text", f"<p>{words(rng, 60)} 😀 naïve “{words(rng, 3)}”</p>"),
    ]
    if picture is not None:
        picture.contextual_alt_text, picture.decorative = words(rng, 3), False
        blocks.append(("picture", picture))
    return blocks


def new_person(name: str) -> Any:
    person = get_user_model().objects.create_user(name, f"{name}@example.org", "secret", first_name=name)
    person.groups.add(Group.objects.get(name=DESKS))
    return person
