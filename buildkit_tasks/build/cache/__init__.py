"""Build caches outside the builder: read ``--cache-to`` and ``--cache-from``, one scope for each platform.

A cache is exported as one manifest under one name (a registry's tag, a folder's ``index.json``, a scope
of GitHub's), and whoever exports last under that name replaces it: two jobs that build one platform each
would take turns in losing theirs. So each platform has a scope of its own, made from the name that was
given, which is the *base*:

======== ================= ======================================
type     what names it     scope of linux/arm/v7
======== ================= ======================================
local    ``dest``, ``src`` the subfolder ``linux-arm-v7``
registry ``ref``           the tag with ``-linux-arm-v7`` after it
gha      ``scope``         the scope with ``-linux-arm-v7`` after it
======== ================= ======================================

What was found out by trying, and follows from it:

- One solve of several platforms exports one manifest that holds the layers and the records of all of them.
  Such a build exports to the base, once; what one platform has in common with another is sent once.
- A build of one platform (a job of a fleet) exports to its platform's scope.
- Both import from the base and from the scope of each platform that they build: a cache that was made by
  buildx alone, or the inline cache of an image, lies at the base.
- A builder of several nodes has a solve on each of them, with the same ``--cache-to``: the node that ends
  last would replace what the others exported (github.com/docker/buildx/issues/1044). There each platform
  is a build of its own (:mod:`buildkit_tasks.build.multi_node`), which exports to its own scope.
- A cache that is not there is no error for BuildKit, which says so and builds. An importer that it does
  not know is none either: that would be a cache that never helps, and is refused here.

Inline caches lie in the image and need no scope. Other types (``s3``, ``azblob``) are passed on unchanged.
"""

from buildkit_tasks.build.cache.checking import cache_notes, check_cache, check_exporters
from buildkit_tasks.build.cache.scopes import exports, imports, of_image
from buildkit_tasks.build.cache.spec import CacheSpec, has_inline, read_caches

__all__ = [
    "CacheSpec",
    "cache_notes",
    "check_cache",
    "check_exporters",
    "exports",
    "has_inline",
    "imports",
    "of_image",
    "read_caches",
]
