"""`post`: a desk puts a page on the noticeboard, which belongs to all desks; `--away` takes its pages home."""

import random
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction
from wagtail.models import Page

from ...models import ArticlePage, SectionPage
from ...pages import new_article


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--desk", type=int, required=True)
        parser.add_argument("--away", action="store_true")

    @transaction.atomic
    def handle(self, *args: Any, desk: int, away: bool, **options: Any) -> None:
        me = get_user_model().objects.get(username=f"desk{desk}")
        board = SectionPage.objects.get(title="Noticeboard")
        if not away:
            new_article(random.Random(desk), board, f"Notice of desk {desk}", me)
            return
        today = SectionPage.objects.get(title=f"Desk {desk}").get_children().get(title="Today")
        for page in ArticlePage.objects.child_of(board).filter(owner=me):
            Page.objects.get(pk=page.pk).move(today, pos="last-child")
