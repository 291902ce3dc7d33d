from conftest_export import run_folder  # noqa: F401
