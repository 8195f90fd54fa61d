"""``GET /``: the essentials on one page, without Grafana, scripts, or anything from elsewhere."""

from daemon.page.route import add_page

__all__ = ["add_page"]
