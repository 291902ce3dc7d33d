"""The list of packages: those found under src/, and conf/ as cdiff.conf. All the rest stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages("src"), "cdiff.conf"])
