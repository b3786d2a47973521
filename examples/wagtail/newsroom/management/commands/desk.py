"""`desk`: one desk's work for some time. Prints what it did as JSON.

A desk adds, moves and deletes pages below its own section only; the stories on the front, the shared pictures and
the chief belong to all desks, and all of them change these.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction
from django.utils import timezone
from wagtail.actions.move_page import MovePageAction
from wagtail.images import get_image_model
from wagtail.models import Page

from ...models import ArticlePage, HomePage, SectionPage
from ...pages import body, new_article, new_image, new_person, words


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--desk", type=int, required=True)
        parser.add_argument("--seconds", type=float, default=10)
        parser.add_argument("--seed", default="0")

    def handle(self, *args: Any, desk: int, seconds: float, seed: str, **options: Any) -> None:
        work = Desk(desk, random.Random(f"{seed}/{desk}"))
        end = time.monotonic() + seconds
        work.everything()
        while time.monotonic() < end:
            work.one()
        self.stdout.write(json.dumps(work.done))


class Desk:
    """A task is one transaction, as a request to the admin is. It returns False if it found nothing to do."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.number, self.rng = number, rng
        self.done: Counter[str] = Counter()
        self._me = get_user_model().objects.get(username=f"desk{number}")
        self._tasks: dict[Callable[[], bool], int] = {
            self.write: 25,
            self.revise: 15,
            self.draft: 5,
            self.move: 8,
            self.reorder: 5,
            self.withdraw: 5,
            self.upload: 5,
            self.discard: 3,
            self.hire: 3,
            self.dismiss: 2,
            self.change_the_front: 12,
            self.change_the_home_page: 4,
            self.retitle_a_shared_picture: 6,
            self.sign_the_chief_in: 4,
        }

    def everything(self) -> None:
        """Some articles, then every task once."""
        for task in [*[self.write] * 6, *self._tasks]:
            self._do(task)

    def one(self) -> None:
        self._do(self.rng.choices(list(self._tasks), list(self._tasks.values()))[0])

    def _do(self, task: Callable[[], bool]) -> None:
        with transaction.atomic():
            done = task()
        self.done[task.__name__ if done else "nothing to do"] += 1

    # ---- its own

    def _section(self) -> Page:
        """Today, or the archive."""
        desk = SectionPage.objects.get(title=f"Desk {self.number}")
        return self.rng.choice(list(desk.get_children()))

    def _article(self) -> Any:
        desk = SectionPage.objects.get(title=f"Desk {self.number}")
        return self._pick(ArticlePage.objects.descendant_of(desk))

    def _pick(self, rows: Any) -> Any:
        keys = list(rows.order_by("pk").values_list("pk", flat=True))
        return rows.get(pk=self.rng.choice(keys)) if keys else None

    def write(self) -> bool:
        picture = new_image(self.rng, words(self.rng, 2)) if self.rng.random() < 0.5 else None
        title = f"{words(self.rng, 3)} {self.number}-{self.rng.randrange(10**9)}"
        new_article(self.rng, self._section(), title, self._me, picture)
        return True

    def revise(self) -> bool:
        """Change an article and publish it."""
        if (article := self._article()) is None:
            return False
        article.lead, article.body = words(self.rng, 10), body(self.rng)
        article.save_revision(user=self._me).publish(user=self._me)
        return True

    def draft(self) -> bool:
        """Change an article for later, or take it off the site."""
        if (article := self._article()) is None:
            return False
        if article.live and self.rng.random() < 0.5:
            article.unpublish(user=self._me)
        else:
            article.title = f"{words(self.rng, 2)} (draft)"
            article.save_revision(user=self._me)
        return True

    def move(self) -> bool:
        """To the other section, with a new path."""
        section, article = self._section(), self._article()
        if article is None or article.is_child_of(section):
            return False
        MovePageAction(article, section, pos="last-child", user=self._me).execute(skip_permission_checks=True)
        return True

    def reorder(self) -> bool:
        """To the front of its section: all others get new paths."""
        article = self._article()
        if article is None or article.get_prev_sibling() is None:
            return False
        article.move(article.get_first_sibling(), pos="left")
        return True

    def withdraw(self) -> bool:
        if (article := self._article()) is None:
            return False
        article.delete(user=self._me)
        return True

    def upload(self) -> bool:
        new_image(self.rng, f"Desk {self.number}")
        return True

    def discard(self) -> bool:
        """A picture that is on no page."""
        if (image := self._pick(get_image_model().objects.filter(title=f"Desk {self.number}"))) is None:
            return False
        image.delete()
        return True

    def hire(self) -> bool:
        new_person(f"desk{self.number}-{self.rng.randrange(10**9)}")
        return True

    def dismiss(self) -> bool:
        people = get_user_model().objects.filter(username__startswith=f"desk{self.number}-")
        if (person := self._pick(people)) is None:
            return False
        person.delete()
        return True

    # ---- everybody's

    def change_the_front(self) -> bool:
        """A story that all desks rewrite."""
        story = self._pick(ArticlePage.objects.filter(title__startswith="Story"))
        story.title = f"Story {words(self.rng, 2)}"
        story.lead = f"desk {self.number}: {words(self.rng, 8)}"
        story.save_revision(user=self._me).publish(user=self._me)
        return True

    def change_the_home_page(self) -> bool:
        home = HomePage.objects.get()
        home.slogan, home.body = words(self.rng, 4), f"<p>{words(self.rng, 20)}</p>"
        home.save()
        return True

    def retitle_a_shared_picture(self) -> bool:
        image = self._pick(get_image_model().objects.filter(title__startswith="Shared"))
        image.title = f"Shared {words(self.rng, 2)}"
        image.focal_point_x = image.focal_point_y = self.rng.randrange(1, 20)
        image.focal_point_width = image.focal_point_height = 5
        image.save()
        return True

    def sign_the_chief_in(self) -> bool:
        get_user_model().objects.filter(username="chief").update(last_login=timezone.now())
        return True
