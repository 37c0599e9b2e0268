"""Folders of trainings and rounds, damaged: the same weights as of an undisturbed run, or an error in one line."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.folder_damages import CHANGES, PLACES, damage
from tests.faults.warm import Ended, Fault, Warm

