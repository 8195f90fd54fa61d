"""The Celery application of a worker with a toy in place of the language model."""

from tests.broker.toy_holder import ToyHolder, make_app

app = make_app(ToyHolder)
