"""Makes the roles' module_utils importable, as Ansible does, before any test imports them."""

import support  # noqa: F401
