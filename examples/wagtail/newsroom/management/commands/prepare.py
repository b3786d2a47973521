"""`prepare`: the newsroom before its first day, made once."""

import random
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction
from taggit.models import Tag
from wagtail.models import GroupPagePermission, Page, Site

from ...models import HomePage, SectionPage
from ...pages import DESKS, TAGS, new_article, new_image, new_person


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--desks", type=int, default=1, help="how many desks write")

    @transaction.atomic
    def handle(self, *args: Any, desks: int, **options: Any) -> None:
        rng = random.Random(0)
        desks_group = Group.objects.create(name=DESKS)
        chief = get_user_model().objects.create_superuser("chief", "chief@example.org", "secret")
        for name in TAGS:
            Tag.objects.create(name=name)
        home = HomePage(title="Newsroom", slogan="All of it", owner=chief)
        Page.get_first_root_node().add_child(instance=home)
        for codename in ("add_page", "change_page", "publish_page"):
            permission = Permission.objects.get(content_type__app_label="wagtailcore", codename=codename)
            GroupPagePermission.objects.create(group=desks_group, page=home, permission=permission)
        site = Site.objects.get(is_default_site=True)
        welcome, site.root_page = site.root_page, home
        site.save()
        welcome.delete()
        front = home.add_child(instance=SectionPage(title="Front", owner=chief))
        for number in range(3):
            new_article(rng, front, f"Story {number + 1}", chief, new_image(rng, f"Shared {number + 1}"))
        home.add_child(instance=SectionPage(title="Noticeboard", owner=chief))
        for number in range(1, desks + 1):
            new_person(f"desk{number}")
            desk = home.add_child(instance=SectionPage(title=f"Desk {number}", owner=chief))
            for title in ("Today", "Archive"):
                desk.add_child(instance=SectionPage(title=title, owner=chief))
