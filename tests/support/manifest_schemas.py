"""Kubernetes' schemas, each read once: kubernetes_validate reads megabytes anew for every manifest."""

from __future__ import annotations

import functools

from kubernetes_validate import ValidationError, utils, validate

__all__ = ["ValidationError", "validate"]

utils.schema_contents = functools.cache(utils.schema_contents)
utils.all_versions = functools.cache(utils.all_versions)
