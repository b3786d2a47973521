"""Wagtail at several sites: a content management system on Django, whose tables were not made for this."""
