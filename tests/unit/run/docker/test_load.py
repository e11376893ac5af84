from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import APIError

from buildkit_tasks.errors import CheckFailed, EngineError
from buildkit_tasks.run.docker import load
from tests.support.fake_engine import make_engine


class FakeApi:
    """An engine that refuses to remove images with ``status``, unless it is 200."""

    timeout = 30

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.removed: list[str] = []

    def remove_image(self, image_id: str) -> None:
        if self.status != 200:
            response: Any = SimpleNamespace(status_code=self.status, reason="no", url="/images")
            raise APIError("refused", response=response)
        self.removed.append(image_id)


def use_and_remove(api: FakeApi, error: BaseException | None = None) -> None:
    """Load two images and remove them, after an error if there is one."""
    client: Any = SimpleNamespace(api=api)
    with load._remove_loaded_images(make_engine(), client) as image_ids:
        image_ids += ["a", "b"]
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [None, EngineError("refused"), KeyboardInterrupt()])
def test_loaded_images_are_removed(error: BaseException | None) -> None:
    api = FakeApi()
    if error is None:
        use_and_remove(api)
    else:
        with pytest.raises(type(error)):
            use_and_remove(api, error)
    assert api.removed == ["a", "b"]


def test_image_that_others_use_stays() -> None:
    use_and_remove(FakeApi(status=409))


def test_failed_removal_is_an_error() -> None:
    with pytest.raises(CheckFailed, match="the image a that was loaded for the run could not be removed"):
        use_and_remove(FakeApi(status=500))
