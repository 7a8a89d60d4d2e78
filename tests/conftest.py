"""What holds for all tests."""

import pytest

# Their asserts tell what was found, as those in test files do.
pytest.register_assert_rewrite("field_cases")
