"""The pages: a front page, sections, and articles with pictures, tags, links and a body of blocks."""

from typing import ClassVar

from django.db import models
from modelcluster.contrib.taggit import ClusterTaggableManager
from modelcluster.fields import ParentalKey
from taggit.models import TaggedItemBase
from wagtail.blocks import CharBlock, RichTextBlock
from wagtail.fields import RichTextField, StreamField
from wagtail.images.blocks import ImageBlock
from wagtail.models import Orderable, Page
from wagtail.search import index


class HomePage(Page):
    slogan = models.CharField(max_length=200, blank=True)
    body = RichTextField(blank=True)


class SectionPage(Page):
    intro = RichTextField(blank=True)


class ArticleTag(TaggedItemBase):
    content_object = ParentalKey("ArticlePage", related_name="tagged_items", on_delete=models.CASCADE)


class ArticlePage(Page):
    date = models.DateField()
    lead = models.TextField(blank=True)
    picture = models.ForeignKey(
        "wagtailimages.Image", null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    body = StreamField(
        [("heading", CharBlock()), ("text", RichTextBlock()), ("picture", ImageBlock())], blank=True
    )
    tags = ClusterTaggableManager(through=ArticleTag, blank=True)

    search_fields: ClassVar = [*Page.search_fields, index.SearchField("lead"), index.SearchField("body")]


class ArticleLink(Orderable):
    page = ParentalKey(ArticlePage, related_name="links", on_delete=models.CASCADE)
    title = models.CharField(max_length=100)
    url = models.URLField()
