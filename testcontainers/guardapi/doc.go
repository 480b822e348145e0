// Package guardapi compares `oncemill guard`, as a process on a real Postgres, with what
// its OpenAPI description says: schemathesis makes up requests from the description, right
// ones and wrong ones, and looks at each answer.
//
// It needs Python 3.10 or newer with venv (ONCEMILL_PYTHON, or python3 on PATH).
// schemathesis is installed once, into a virtual environment in the cache directory.
// Without Python its test is skipped, or fails with ONCEMILL_TEST_REQUIRE_PYTHON=1.
package guardapi
