"""The folder scripts/ is on the path of its scripts, which import their packages from there."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
