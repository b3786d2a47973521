"""A newsroom on Wagtail: a Django project for one PostgreSQL, which knows of nothing else.

DATABASE_URL=postgresql://... DJANGO_SETTINGS_MODULE=examples.wagtail.newsroom.settings python -m django migrate
"""
